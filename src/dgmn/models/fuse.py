"""Prepares networks for inference."""

import copy
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dgmn.layers.packed import PACKED
from dgmn.ops.tracing import has_hooks

Network = TypeVar("Network", bound=nn.Module)


def fuse(model: Network) -> Network:
    """The one call before serving: folds batch norms, and packs the weights of convolutions and linear layers.

    Outputs are equal, with fewer passes over the maps. On CPUs, small maps and small batches gain most from packing.

    Args:
        model: any network; it is not changed. A norm is folded if it follows its convolution in an `nn.Sequential`,
            as in our networks. Linear layers become [`PackedLinear`][dgmn.layers.PackedLinear], and convolutions
            [`PackedConv2d`][dgmn.layers.PackedConv2d].

    Returns:
        A copy in evaluation mode, for inference only: its norms are gone, and their statistics are fixed. It can be
        copied, saved, exported and moved to another device. Its state dict loads into another fused copy.

    Raises:
        TypeError: `model` is no network.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    fused = copy.deepcopy(model).eval()
    for parent in fused.modules():
        # A subclass may call its layers in another way.
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            _fold(parent)
    for layer in fused.modules():
        if type(layer) in PACKED and not has_hooks(layer):
            layer.__class__ = PACKED[type(layer)]
    return fused


def _fold(layers: nn.Sequential) -> None:
    for first, second in pairwise(list(layers._modules)):
        conv, norm = layers._modules[first], layers._modules[second]
        # Only these classes: subclasses (timm's norms with an activation, parametrised weights) compute something else.
        if type(conv) is not nn.Conv2d or type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            continue
        assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        if norm.track_running_stats and not (has_hooks(conv) or has_hooks(norm)):
            # Layers are addressed by name, so an identity takes the norm's place.
            layers._modules[first] = fuse_conv_bn_eval(conv, norm)
            layers._modules[second] = nn.Identity()

"""ResNets with DGMN modules inside, or with modules that the paper compares with (paper, section 5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import timm
from timm.layers import freeze_batch_norm_2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.utils import freeze
from torch import Tensor, nn

from dgmn.about import About, about_timm, unwrapped
from dgmn.errors import InputError
from dgmn.layers import DeformableConv2d, context_module
from dgmn.models.insert import put_behind
from dgmn.models.official import refuse_released
from dgmn.weights.keys import match_keys

Place = Literal["c5", "c4_c5", "res4"]


class DGMNResNet(ResNet):
    """timm's ResNet of bottlenecks with modules that let distant positions exchange messages.

    The modules stand where the paper has them: after the 3x3 convolution, its norm and its ReLU, in every block of the
    last stage ("c5") or of the last two ("c4_c5"). "res4" is a single module before the last block of the stage before
    the last, as in non-local networks. All other weights have the names of the plain network, so its weights load; the
    modules then start anew.

    Args:
        block: class of the blocks, a bottleneck; see `timm.models.resnet.ResNet`.
        layers: number of blocks in every stage.
        module: one of `dgmn.layers.context.MODULES`, for instance "dgmn", "non_local"; "none" is the plain network.
        at: "c5", "c4_c5" or "res4".
        module_args: more arguments for the module, for instance `{"sampling_rates": (1, 4, 8)}`.
        frozen_norms: keep the network's batch norms, with their statistics, as its weights have them. The paper does
            so on COCO. Norms inside the modules are trained.
        frozen_stages: this many of the first stages, and the stem, are not trained, and their norms do not change.
            Modules in them are trained. 0 freezes nothing; on COCO it is usually 1. Like `frozen_norms` this is for
            pretrained weights.
        stride_in_1x1: a stage's stride is in the first 1x1 convolution of its first block, and not in the 3x3
            convolution: for weights of Caffe2, as the first paper starts from.
        **kwargs: those of `timm.models.resnet.ResNet`.

    Raises:
        InputError (a ValueError): an unknown module or place, or a network that has no such place.

    Source: Zhang et al., Dynamic Graph Message Passing Networks, section 5 (https://arxiv.org/abs/2209.09760).
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        *,
        module: str = "dgmn",
        at: Place = "c5",
        module_args: Mapping[str, Any] | None = None,
        frozen_norms: bool = False,
        frozen_stages: int = 0,
        stride_in_1x1: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(frozen_stages, int) or not 0 <= frozen_stages <= len(layers):
            raise InputError(f"frozen_stages must be a whole number in 0..{len(layers)}, got {frozen_stages!r}")
        # A frozen norm whose weight starts at 0 would keep its branch at 0 for ever.
        some_frozen = frozen_norms or frozen_stages > 0
        super().__init__(cast(Any, block), tuple(layers), **{"zero_init_last": not some_frozen, **kwargs})
        if frozen_norms:
            freeze_batch_norm_2d(self)
        if frozen_stages:
            freeze(self, ["conv1", "bn1", *(f"layer{i + 1}" for i in range(frozen_stages))])
        if not issubclass(block, Bottleneck):
            raise InputError(f"block: modules stand in bottlenecks, got {block.__name__}")
        if stride_in_1x1:
            for bottleneck in self.modules():
                if isinstance(bottleneck, Bottleneck):
                    first, second = cast(nn.Conv2d, bottleneck.conv1), cast(nn.Conv2d, bottleneck.conv2)
                    first.stride, second.stride = second.stride, first.stride
        for name in _blocks(layers, at):
            found = cast(Any, self.get_submodule(name))
            if module == "deformable" and at != "res4":
                if module_args:
                    raise InputError(f"module_args: deformable takes none here, got {dict(module_args)}")
                found.conv2 = _deformable(found.conv2)
                continue
            activation, channels = ("act3", found.conv3) if at == "res4" else ("act2", found.conv2)
            added = context_module(module, channels.out_channels, module_args).to(channels.weight)
            put_behind(found.get_submodule(activation), added)

    def about(self) -> About:
        return replace(about_timm(self), classifier=("fc.",), multiple=1, official=refuse_released)


def _blocks(layers: Sequence[int], at: Place) -> Iterator[str]:
    """The blocks that get a module."""
    if at == "res4":
        if len(layers) < 2 or layers[-2] < 2:
            raise InputError(f'at "res4" is between two blocks of the last stage but one, which {tuple(layers)} lacks')
        yield f"layer{len(layers) - 1}.{layers[-2] - 2}"
    elif at in ("c5", "c4_c5"):
        for stage in range(len(layers) - (at == "c4_c5"), len(layers) + 1):
            for i in range(layers[stage - 1]):
                yield f"layer{stage}.{i}"
    else:
        raise InputError(f'at must be "c5", "c4_c5" or "res4", got {at!r}')


def _deformable(conv: nn.Conv2d) -> DeformableConv2d:
    stride, padding, dilation = conv.stride[0], cast(Any, conv.padding)[0], conv.dilation[0]
    new = DeformableConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], stride, padding, dilation, conv.groups, bias=False
    )
    new.to(conv.weight)
    new.weight = conv.weight
    return new


def set_multi_grid(network: nn.Module, grid: Sequence[int] = (1, 2, 4)) -> None:
    """Multiplies the dilation of the last stage of a dilated ResNet, block by block, in place.

    Args:
        network: a ResNet of timm with `output_stride` 8 or 16, or its feature extractor with `feature_cls="getter"`.
        grid: a factor for each block of the last stage.

    Raises:
        InputError (a ValueError): the network is no ResNet or not dilated, or `grid` does not fit its blocks.

    Source: DeepLabv3 (https://arxiv.org/abs/1706.05587), section 3.1.
    """
    network, _ = unwrapped(network)
    if not isinstance(network, ResNet):
        raise InputError(f"multi_grid: is for timm's ResNets, got {type(network).__name__}")
    last = network.feature_info[-1]
    blocks = list(cast(nn.Sequential, network.get_submodule(last["module"])))
    factors = list(grid) if isinstance(grid, Sequence) else []
    if len(factors) != len(blocks) or not all(type(n) is int and n >= 1 for n in factors):
        raise InputError(f"multi_grid: a factor of at least 1 for each of {len(blocks)} blocks, got {grid!r}")
    dilation = 32 // last["reduction"]  # timm gives it to all blocks of the stage but the first
    if dilation == 1:
        raise InputError("multi_grid: the network is not dilated: it needs an output_stride of 8 or 16")
    for block, factor in zip(blocks, factors, strict=True):
        for conv in _convolutions(block):
            conv.dilation = conv.padding = (dilation * factor,) * 2


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    """The 3x3 convolutions of a block."""
    names = ("conv1", "conv2") if isinstance(block, BasicBlock) else ("conv2",)
    return [cast(nn.Conv2d, block.get_submodule(name)) for name in names]


def _filter(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return match_keys(state_dict, model, check_shapes=False, allow_unknown=True).state_dict


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    # The getter keeps the names of the weights.
    feature_cfg = {"feature_cls": "getter"}
    return cast(
        nn.Module,
        build_model_with_cfg(
            DGMNResNet, variant, pretrained, pretrained_filter_fn=_filter, feature_cfg=feature_cfg, **kwargs
        ),
    )


def _plain(name: str) -> dict[str, Any]:
    """timm's entry for the plain network's weights: those of torchvision's recipe of that time, as in the paper."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    return {key: value for key, value in cfg.to_dict().items() if key not in ("architecture", "tag")}


default_cfgs = generate_default_cfgs(
    {f"dgmn_{name}.tv_in1k": _plain(f"{name}.tv_in1k") for name in ("resnet50", "resnet101", "resnext101_32x8d")}
)


@register_model
def dgmn_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with DGMN; `pretrained` fills all but the modules."""
    return _create("dgmn_resnet50", pretrained, **{"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs})


@register_model
def dgmn_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with DGMN; `pretrained` fills all but the modules."""
    return _create("dgmn_resnet101", pretrained, **{"block": Bottleneck, "layers": (3, 4, 23, 3), **kwargs})


@register_model
def dgmn_resnext101_32x8d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-101 (32 x 8d) with DGMN; `pretrained` fills all but the modules."""
    args: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 8}
    return _create("dgmn_resnext101_32x8d", pretrained, **{**args, **kwargs})

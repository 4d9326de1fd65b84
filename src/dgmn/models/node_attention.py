"""DGMN2's attention in the place of the attention of other networks: Swin's and PVTv2's."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from timm.models.pvt_v2 import Block
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.layers import DGMN2Attention


class SwinAttention(DGMN2Attention):
    """Attention to sampled nodes, with Swin's query, key, value and projection.

    Args:
        old: the attention that it replaces.
        map_size: see [`DGMN2Attention`][dgmn.layers.DGMN2Attention]; so are the other arguments.
    """

    def __init__(self, old: Any, map_size: tuple[int, int], **arguments: Any) -> None:
        super().__init__(old.dim, old.num_heads, map_size, **{**_drops(old), **arguments})
        if old.qkv.out_features != 3 * old.dim:
            raise InputError(f"dgmn2_attention needs {old.dim} channels of query, got {old.qkv.out_features // 3}")
        self.qkv, self.proj = old.qkv, old.proj

    def adds(self) -> tuple[str, ...]:
        return ("offset.", "rel_pos.")

    def lacks(self) -> tuple[str, ...]:
        return ("relative_position_bias_table",)


class PVTv2Attention(DGMN2Attention):
    """The same with those of PVTv2; the arguments are those of `SwinAttention`."""

    def __init__(self, old: Any, map_size: tuple[int, int], **arguments: Any) -> None:
        super().__init__(old.dim, old.num_heads, map_size, **{**_drops(old), **arguments})
        del self.qkv
        self.q, self.kv, self.proj = old.q, old.kv, old.proj

    def adds(self) -> tuple[str, ...]:
        return ("offset.", "rel_pos.")

    def lacks(self) -> tuple[str, ...]:
        return ("sr.", "norm.")

    @override
    def query_key_value(self, x: Tensor) -> Tensor:
        return torch.cat((self.q(x), self.kv(x)), -1)


def _drops(old: Any) -> dict[str, float]:
    return {"attn_drop": old.attn_drop.p, "proj_drop": old.proj_drop.p}


class SwinBlock(SwinTransformerBlock):
    """timm's block of Swin, which gives its attention the whole map instead of windows."""

    def _attn(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn(x)
        return out

    def _init_buffers(self) -> None:
        self.attn_mask = None

    def set_input_size(self, feat_size: tuple[int, int], *_: Any, **__: Any) -> None:
        self.input_resolution = feat_size


class PVTv2Block(Block):
    """timm's block of PVTv2, which gives its attention a map instead of tokens."""

    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x).unflatten(1, tuple(feat_size))).flatten(1, 2))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x), feat_size))
        return out


# The blocks whose attention can be replaced, with the attention and the block that take their place.
_BLOCKS: Mapping[type[nn.Module], tuple[type[SwinAttention] | type[PVTv2Attention], type[nn.Module]]] = {
    SwinTransformerBlock: (SwinAttention, SwinBlock),
    Block: (PVTv2Attention, PVTv2Block),
}


def attention_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a network whose attention can be replaced, each with the name of its attention."""
    for name, module in network.named_modules():
        if type(module) in _BLOCKS:
            yield f"{name}.attn".removeprefix("."), module


def map_size(inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Height and width of a block's map, from what the block was called with."""
    height, width = inputs[1] if len(inputs) > 1 else inputs[0].shape[1:3]
    return int(height), int(width)


def node_attention(block: nn.Module, size: tuple[int, int], arguments: Mapping[str, Any]) -> DGMN2Attention:
    """The attention for the place of a block's own, of whose weights it keeps query, key, value and projection.

    Args:
        block: one of [`attention_blocks`][dgmn.models.node_attention.attention_blocks].
        size: height and width of the block's map.
        arguments: more arguments for [`DGMN2Attention`][dgmn.layers.DGMN2Attention], for instance `kernel_size`.

    Raises:
        InputError: it does not take these arguments.
    """
    old = cast(Any, block).attn
    try:
        attention = _BLOCKS[type(block)][0](old, size, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"dgmn2_attention cannot be built with {dict(arguments)}: {error}") from error
    return attention.to(old.proj.weight).train(block.training)


def put_attention(block: nn.Module, attention: DGMN2Attention) -> None:
    """Puts an attention into a block, in the place of its own."""
    block.__class__ = _BLOCKS[type(block)][1]
    cast(Any, block).attn = attention
    if isinstance(block, SwinBlock):
        block.attn_mask = None  # of windows

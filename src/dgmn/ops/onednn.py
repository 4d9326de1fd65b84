"""oneDNN's layers in float32: linear ones with the bias, GELU or a sum inside, and convolutions of packed weights.

PyTorch's eager mode does not use them.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`x @ weight.T + bias`, and with `"gelu"` GELU of it.

    Args:
        x: (..., C), float32, on the CPU, as are the others.
        weight: (D, C), also of other strides, or packed by `pack`.
        bias: (D,).
        activation: "none" or "gelu".

    Returns:
        (..., D), a new tensor. It has no gradients.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, _contiguous(bias), activation, [], "none")
    return out


def added_linear(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`residual + linear(x)`; otherwise as `linear`."""
    given = (x, residual.contiguous(), weight, _contiguous(bias))
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(*given, "add")
    return out


def _contiguous(bias: Tensor | None) -> Tensor | None:
    """oneDNN reads memory as if the numbers of a bias lay side by side."""
    return None if bias is None else bias.contiguous()


def pack(weight: Tensor) -> Tensor:
    """A copy of a weight (D, C) in oneDNN's own order, for `linear` and `added_linear`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def convolution(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`F.conv2d` of an input (B, C, H, W) with channels last, with weights of `pack_convolution`."""
    geometry = (padding, stride, dilation, groups)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, _contiguous(bias), *geometry, "none", [], "")
    return out


def pack_convolution(
    weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, size: list[int]
) -> Tensor:
    """A copy of a convolution's weight in the order that oneDNN likes best for inputs of this size (B, C, H, W)."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, size)
    return packed


def computes(*tensors: Tensor) -> bool:
    """Whether the layers take these tensors: in float32, on the CPU, not empty, and unless PyTorch's oneDNN is off."""
    usual = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 for x in tensors)
    return usual and bool(torch.backends.mkldnn.enabled) and is_available()


@torch.compiler.assume_constant_result
def has_avx512() -> bool:
    """Whether PyTorch computes with AVX-512. oneDNN's products are then faster than MKL's (measured on AMD's CPUs)."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Whether this PyTorch has these layers, and they compute what they should."""
    return _is_available()


@functools.cache
def _is_available() -> bool:
    with _disable_current_modes():  # a counter would count the check, and fake tensors would fail it
        return _passes()


def _passes() -> bool:
    shapes = ((2, 3), (4, 3), (4,))
    x, weight, bias = (
        torch.linspace(-1, 1, math.prod(shape), dtype=torch.float32, device="cpu").view(shape) for shape in shapes
    )
    want = F.linear(x, weight, bias)
    image, kernel = x.view(1, 1, 2, 3), weight[:, None, None]
    geometry: tuple[list[int], list[int], list[int], int] = ([0, 1], [1, 1], [1, 1], 1)
    try:
        packed = pack_convolution(kernel, *geometry, [1, 1, 2, 3])
        pairs = (
            (linear(x, pack(weight), bias), want),
            (linear(x, weight.T.contiguous().T, bias), want),
            (linear(x, weight, bias, "gelu"), F.gelu(want)),
            (added_linear(want, x, weight, bias), 2 * want),
            (convolution(image, packed, bias, *geometry), F.conv2d(image, kernel, bias, padding=(0, 1))),
        )
        return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    except (AttributeError, RuntimeError, TypeError):  # operators without a promise of PyTorch
        return False

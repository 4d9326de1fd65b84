"""Linear layers and convolutions whose weights oneDNN has put into its own order beforehand."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.ops import onednn
from dgmn.ops.linear import is_inference_on_cpu
from dgmn.ops.tracing import opaque

# How many hidden numbers of a perceptron are computed at a time: 8 MiB.
_HIDDEN = 2**21


class _Packed(nn.Module):
    """A layer for inference on the CPU: it packs its weights at the first call, and packs them anew if they change.

    With gradients, under autocast, in a traced graph and on other devices it computes as PyTorch's layer does. The
    packed weights are no part of the state dict, of copies and of files.

    PyTorch does not tell of changes through `weight.data`, nor of those of weights made in inference mode. They are
    seen if they change any of 64 numbers spread over the weights, as merged adapters and averaged weights do; after a
    change of single numbers, fuse the network again.
    """

    weight: Tensor
    # What the weights were, some of their numbers in their own memory and as they were, and the packed weights.
    _packed: tuple[Any, Tensor, Tensor, Tensor] | None = None

    def _takes(self, *tensors: Tensor) -> bool:
        """Whether oneDNN computes the layer, with packed weights, for these tensors."""
        if "weight" not in self._parameters:
            return False  # something computes it
        own = [parameter for parameter in self._parameters.values() if parameter is not None]
        return is_inference_on_cpu((*tensors, *own)) and onednn.computes(*tensors, *own)

    def _pack(self, pack: Callable[[Tensor], Tensor]) -> Tensor:
        # Tensors made in inference mode have no version.
        version = None if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), self.weight.stride(), version)
        packed = self._packed
        if packed is None or packed[0] != key or not torch.equal(packed[1], packed[2]):
            weight = self.weight.detach()
            # An odd distance, so that the numbers come from all columns.
            step = max(weight.numel() // 64, 1) | 1
            some = weight.as_strided(((weight.numel() - 1) // step + 1,), (step,))
            packed = self._packed = (key, some, some.clone(), pack(weight))
        return packed[3]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = None  # it would keep the memory that the weights leave
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # PyTorch does not type it

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


@opaque
class PackedLinear(_Packed, nn.Linear):
    """`nn.Linear` with packed weights, where they pay: for inference on the CPU.

    That is on CPUs with AVX-512 (measured on AMD's), and on others where the weights are larger than the map.
    """

    def packs(self, x: Tensor, *others: Tensor) -> bool:
        """Whether the layer uses packed weights for this input; `others` are what else the caller computes with."""
        fits = x.dim() > 0 and x.shape[-1] == self.in_features
        if not (fits and self._takes(x, *others) and self.weight.is_contiguous()):
            return False
        # Asked last: a graph of any size must not depend on the size of the map.
        return onednn.has_avx512() or x.numel() <= min(self.in_features, self.out_features) * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(x) if self.packs(x) else F.linear(x, self.weight, self.bias)

    def computed(self, x: Tensor, activation: str = "none") -> Tensor:
        """The layer with packed weights, and with `"gelu"` after it, where `packs` holds."""
        return onednn.linear(x, self._pack(onednn.pack), self.bias, activation)

    def added(self, residual: Tensor, x: Tensor) -> Tensor:
        """The layer's result added to `residual`, where `packs` holds."""
        return onednn.added_linear(residual, x, self._pack(onednn.pack), self.bias)


@opaque
class PackedConv2d(_Packed, nn.Conv2d):
    """`nn.Conv2d` with packed weights, for inference on the CPU of maps with channels last.

    oneDNN computes PyTorch's convolutions, too, but brings the weights into its order at every call.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._computed(x) if self._packs(x) else super().forward(x)

    def _packs(self, x: Tensor) -> bool:
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        # With one channel any map has channels last, and oneDNN's results are wrong for some strides.
        fits = x.dim() == 4 and x.shape[1] == self.in_channels > 1
        if not (usual and fits and self._takes(x)):
            return False
        last = torch.channels_last
        dense = self.weight.is_contiguous() or self.weight.is_contiguous(memory_format=last)
        return dense and x.is_contiguous(memory_format=last)

    def _computed(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        geometry = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        packed = self._pack(lambda weight: onednn.pack_convolution(weight, *geometry, list(x.shape)))
        return onednn.convolution(x, packed, self.bias, *geometry)


PACKED: dict[type[nn.Module], type[_Packed]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}
"""What takes the place of which layer."""


def packed_perceptron(x: Tensor, first: PackedLinear, second: PackedLinear, residual: Tensor | None) -> Tensor:
    """`residual + second(gelu(first(x)))`, where `packs` holds for both layers.

    The hidden layer is computed some positions at a time, as in [`perceptron`][dgmn.ops.linear.perceptron].
    """
    shape = (*x.shape[:-1], second.out_features)
    if residual is not None and residual.shape != shape:  # spread as in any sum
        return residual + packed_perceptron(x, first, second, None)
    rows = x.reshape(-1, x.shape[-1])
    start = None if residual is None else residual.reshape(-1, second.out_features)
    step = max(_HIDDEN // first.out_features, 1)
    parts = []
    for i in range(0, len(rows), step):
        hidden = first.computed(rows[i : i + step], "gelu")
        parts.append(second.computed(hidden) if start is None else second.added(start[i : i + step], hidden))
    out = torch.cat(parts) if parts[1:] else parts[0]
    return out.view(shape)

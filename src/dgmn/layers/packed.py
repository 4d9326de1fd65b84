"""Linear layers whose weights oneDNN has put into its own order beforehand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.ops import onednn
from dgmn.ops.linear import is_inference_on_cpu

# How many hidden numbers of a perceptron are computed at a time: 8 MiB.
_HIDDEN = 2**21


class PackedLinear(nn.Linear):
    """`nn.Linear` for inference on the CPU: it packs its weights at the first call, and packs them anew if they change.

    That pays on CPUs with AVX-512 (measured on AMD's), and on others where the weights are larger than the map. On
    larger maps there, with gradients, under autocast, in a traced graph and on other devices, it computes as
    `nn.Linear` does. The packed weights are no part of the state dict, of copies and of files.

    PyTorch does not tell of changes through `weight.data`. They are seen if they change any of 64 numbers spread over
    the weights, as merged adapters and averaged weights do; after a change of single numbers, fuse the network again.
    """

    # What the weights were, some of their numbers in their own memory and as they were, and the packed weights.
    _packed: tuple[Any, Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> "PackedLinear":
        """A packed layer with the parameters of `layer`, not copies of them."""
        packed = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        packed.weight, packed.bias = layer.weight, layer.bias
        return packed.train(layer.training)

    def packs(self, x: Tensor, *others: Tensor) -> bool:
        """Whether the layer uses packed weights for this input; `others` are what else the caller computes with."""
        tensors = (x, self.weight, *others) if self.bias is None else (x, self.weight, self.bias, *others)
        if not (self.weight.is_contiguous() and is_inference_on_cpu(tensors) and onednn.computes(*tensors)):
            return False
        # Asked last: a graph of any size must not depend on the size of the map.
        return onednn.has_avx512() or x.numel() <= min(self.in_features, self.out_features) * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(x) if self.packs(x) else F.linear(x, self.weight, self.bias)

    def computed(self, x: Tensor, activation: str = "none") -> Tensor:
        """The layer with packed weights, and with `"gelu"` after it, where `packs` holds."""
        return onednn.linear(x, self._pack(), self.bias, activation)

    def added(self, residual: Tensor, x: Tensor) -> Tensor:
        """The layer's result added to `residual`, where `packs` holds."""
        return onednn.added_linear(residual, x, self._pack(), self.bias)

    def _pack(self) -> Tensor:
        # Tensors made in inference mode have no version.
        version = None if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), version)
        packed = self._packed
        if packed is None or packed[0] != key or not torch.equal(packed[1], packed[2]):
            weight = self.weight.detach()
            # An odd distance, so that the numbers come from all columns.
            some = weight.view(-1)[:: max(weight.numel() // 64, 1) | 1]
            packed = self._packed = (key, some, some.clone(), onednn.pack(weight))
        return packed[3]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = None  # it would keep the memory that the weights leave
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # PyTorch does not type it

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def packed_perceptron(x: Tensor, first: PackedLinear, second: PackedLinear, residual: Tensor | None) -> Tensor:
    """`residual + second(gelu(first(x)))`, where `packs` holds for both layers.

    The hidden layer is computed some positions at a time, as in [`perceptron`][dgmn.ops.linear.perceptron].
    """
    rows = x.reshape(-1, x.shape[-1])
    start = None if residual is None else residual.reshape(-1, second.out_features)
    step = max(_HIDDEN // first.out_features, 1)
    parts = []
    for i in range(0, len(rows), step):
        hidden = first.computed(rows[i : i + step], "gelu")
        parts.append(second.computed(hidden) if start is None else second.added(start[i : i + step], hidden))
    out = torch.cat(parts) if parts[1:] else parts[0]
    return out.view(*x.shape[:-1], second.out_features)

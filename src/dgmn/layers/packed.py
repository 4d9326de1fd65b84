"""Linear layers whose weights oneDNN has put into its own order beforehand."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.ops.linear import is_inference_on_cpu


class PackedLinear(nn.Linear):
    """`nn.Linear` for inference on the CPU: it packs its weights at the first call, and packs them anew if they change.

    That pays where the weights are larger than the map. On larger maps, with gradients, under autocast, in a traced
    graph and on other devices, it computes as `nn.Linear` does. The packed weights are no part of the state dict, of
    copies and of files.

    PyTorch does not tell of changes through `weight.data`. They are seen if they change any of 64 numbers spread over
    the weights, as merged adapters and averaged weights do; after a change of single numbers, fuse the network again.
    """

    _packed: tuple[Any, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> "PackedLinear":
        """A packed layer with the parameters of `layer`, not copies of them."""
        packed = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        packed.weight, packed.bias = layer.weight, layer.bias
        return packed.train(layer.training)

    def packs(self, x: Tensor) -> bool:
        """Whether the layer uses packed weights for this input."""
        few = x.numel() <= min(self.in_features, self.out_features) * self.in_features
        tensors = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return few and x.numel() > 0 and x.dtype == torch.float32 and is_inference_on_cpu(tensors) and can_pack()

    def forward(self, x: Tensor) -> Tensor:
        if not self.packs(x):
            return F.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._pack(), self.bias, "none", [], "")
        return out

    def _pack(self) -> Tensor:
        # Tensors made in inference mode have no version.
        version = None if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), version)
        weight = self.weight.detach()
        # An odd distance, so that the numbers come from all columns.
        some = weight.flatten()[:: max(weight.numel() // 64, 1) | 1]
        packed = self._packed
        if packed is None or packed[0] != key or not torch.equal(packed[1], some):
            packed = self._packed = (key, some.clone(), torch.ops.mkldnn._reorder_linear_weight(weight))
        return packed[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


@functools.cache
def can_pack() -> bool:
    """Whether this PyTorch has oneDNN's linear layers with packed weights, and they compute what they should."""
    x, weight, bias = (torch.linspace(-1, 1, n).view(*shape) for n, shape in ((6, (2, 3)), (12, (4, 3)), (4, (4,))))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        out = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return bool(torch.backends.mkldnn.enabled) and torch.allclose(out, F.linear(x, weight, bias), atol=1e-6)
    except (AttributeError, RuntimeError, TypeError):  # operators without a promise of PyTorch
        return False

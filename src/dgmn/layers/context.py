"""DGMN and the modules that the paper compares it with, with one interface: (B, C, H, W) to (B, C, H, W)."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import GlobalContext
from timm.layers.non_local_attn import NonLocalAttn
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, DeformConv2d
from torchvision.ops.deform_conv import deform_conv2d

from dgmn.errors import InputError, check_number
from dgmn.layers.dgmn import DGMN, sampled_convolution
from dgmn.ops.direct import is_direct
from dgmn.ops.precision import PreciseConv2d, without_autocast
from dgmn.ops.tracing import opaque


@opaque
class DeformableConv2d(DeformConv2d):
    """A deformable convolution, version 2, that predicts its own offsets and masks from its input.

    It starts on the regular grid with all masks at 0.5. Offsets are in float32, also under autocast.
    The arguments are those of `nn.Conv2d`, but numbers are whole: kernel, stride and so on are square.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        stride: step between output positions, in pixels.
        padding: zeros on every side of the map.
        dilation: distance of the kernel's taps, in pixels.
        groups: groups of channels.
        bias: add a learned bias.

    Shape:
        (B, in_channels, H, W) to (B, out_channels, H', W').

    Source: Deformable ConvNets v2 (https://arxiv.org/abs/1811.11168), section 3.2. It computes what torchvision's
    operator does; on the CPU with a stride of 1 with [`sampled_aggregate`][dgmn.ops.sampled_aggregate], in less time.
    Where a tap lies exactly on the bounds of what is read, as those at the border do while offsets are zero, bilinear
    sampling has a kink; its offset then has no gradient on the CPU, and torchvision's has that of the inside.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        for name, number in {**numbers, "stride": stride, "dilation": dilation, "groups": groups}.items():
            check_number(name, number)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.nodes = kernel_size * kernel_size
        self.offset_and_mask = PreciseConv2d(in_channels, 3 * self.nodes, kernel_size, stride, padding, dilation)
        for parameter in self.offset_and_mask.parameters():
            nn.init.zeros_(parameter)

    def adds(self) -> tuple[str, ...]:
        return ("offset_and_mask.",)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            predicted = self.offset_and_mask(x)
            offset, mask = predicted[:, : 2 * self.nodes], predicted[:, 2 * self.nodes :].sigmoid()
            wide, weight = x.to(predicted.dtype), self.weight.to(predicted.dtype)
            bias = None if self.bias is None else self.bias.to(predicted.dtype)
            if self._is_fast(x):
                walks = offset.permute(0, 2, 3, 1).unflatten(-1, (self.nodes, 2))
                sampled = sampled_convolution(wide, weight, bias, walks, mask.permute(0, 2, 3, 1), self.dilation[0])
                out = sampled.permute(0, 3, 1, 2)
            else:
                out = deform_conv2d(wide, offset, weight, bias, self.stride, self.padding, self.dilation, mask)
        return out.to(x.dtype)

    def _is_fast(self, x: Tensor) -> bool:
        """Whether our kernel computes the layer: on the CPU, where torchvision's takes several times as long."""
        centred = self.kernel_size[0] % 2 and self.padding[0] == self.dilation[0] * (self.kernel_size[0] // 2)
        usual = self.stride[0] == self.groups == 1 and centred
        return usual and x.device.type == "cpu" and is_direct(x, self.weight)


@opaque
class CrissCross(nn.Module):
    """Criss-cross attention: every position attends to its row and column. Two rounds reach all positions.

    A round computes `γ Σ_u A_ui g(x_u) + x_i`, summed over the H + W - 1 positions u of the row and the column.
    γ starts at 0, so the module starts as the identity. The rounds share all parameters.

    Args:
        channels: C.
        reduction: C divided by the channels of query and key.
        recurrence: number of rounds.

    Shape:
        (B, C, H, W) to (B, C, H, W).

    Source: CCNet (https://arxiv.org/abs/1811.11721), sections 3.2 and 3.3.
    """

    def __init__(self, channels: int, reduction: int = 8, recurrence: int = 2) -> None:
        super().__init__()
        check_number("channels", channels)
        check_number("reduction", reduction)
        check_number("recurrence", recurrence)
        inner = max(1, channels // reduction)
        # The dot products are not scaled down: half precision could not hold them.
        self.query = PreciseConv2d(channels, inner, 1)
        self.key = PreciseConv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.recurrence = recurrence

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[-2]
        itself = torch.eye(height, dtype=torch.bool, device=x.device)[:, None, :]  # the row already has this position
        for _ in range(self.recurrence):
            value = self.value(x)
            with without_autocast(x):
                query, key = self.query(x), self.key(x)
                column = torch.einsum("bchw,bcgw->bhwg", query, key).masked_fill(itself, float("-inf"))
                row = torch.einsum("bchw,bchv->bhwv", query, key)
                affinity = torch.cat((column, row), -1).softmax(-1).to(value.dtype)
            column, row = affinity[..., :height], affinity[..., height:]
            message = torch.einsum("bhwg,bcgw->bchw", column, value) + torch.einsum("bhwv,bchv->bchw", row, value)
            x = x + self.gamma * message
        return x


@opaque
class NonLocal(NonLocalAttn):
    """timm's non-local block, with PyTorch's attention.

    The affinities are in float32. Most devices do not store them.

    Shape:
        (B, C, H, W) to (B, C, H, W).

    Source: see [`non_local`][dgmn.layers.context.non_local].
    """

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2).transpose(1, 2)[:, None] for conv in (self.t, self.p, self.g))
        message = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        message = message[:, 0].transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        out: Tensor = self.norm(self.z(message)) + x
        return out


def non_local(channels: int, inner_channels: int | None = None, convolution: bool = False) -> nn.Module:
    """timm's non-local block: every position attends to all others, in O((HW)²).

    Args:
        channels: C.
        inner_channels: channels of query, key and value; None: half of C.
        convolution: add a 3x3 convolution with batch norm and ReLU. Table 2 of the paper gives the cost with it.

    Source: Non-local Neural Networks (https://arxiv.org/abs/1711.07971).
    """
    inner_channels = max(1, channels // 2) if inner_channels is None else inner_channels
    check_number("inner_channels", inner_channels)
    block = NonLocal(channels, rd_channels=inner_channels)
    if not convolution:
        return block
    return nn.Sequential(OrderedDict(block=block, convolution=Conv2dNormActivation(channels, channels, 3)))


def global_context(channels: int, reduction: int = 16) -> nn.Module:
    """timm's GCNet block: it computes one context for all positions and adds it to each.

    Args:
        channels: C.
        reduction: C divided by the channels of the bottleneck.

    Source: GCNet (https://arxiv.org/abs/1904.11492), section 3.4.
    """
    check_number("reduction", reduction)
    block: nn.Module = GlobalContext(
        channels, fuse_add=True, fuse_scale=False, rd_channels=max(1, channels // reduction)
    )
    # timm sets the weights of this layer to zero. With a zero bias, a pretrained network starts unchanged.
    nn.init.zeros_(block.get_parameter("mlp_add.fc2.bias"))
    return block


def aspp(channels: int, sampling_rates: Sequence[int] = (12, 24, 36), inner_channels: int = 256) -> nn.Module:
    """torchvision's atrous spatial pyramid pooling, then a 1x1 convolution back to C channels.

    Args:
        channels: C.
        sampling_rates: dilations of the pyramid's 3x3 convolutions.
        inner_channels: channels of the pyramid's branches and of its output.

    Source: DeepLabv3 (https://arxiv.org/abs/1706.05587), section 3.3.
    """
    from torchvision.models.segmentation.deeplabv3 import ASPP

    check_number("inner_channels", inner_channels)
    if not sampling_rates:
        raise ValueError("sampling_rates must not be empty")
    for rate in sampling_rates:
        check_number("sampling_rates", rate)
    pyramid = ASPP(channels, list(sampling_rates), inner_channels)
    return nn.Sequential(OrderedDict(pyramid=pyramid, expand=Conv2dNormActivation(inner_channels, channels, 1)))


def deformable(channels: int, inner_channels: int | None = None) -> nn.Module:
    """A 3x3 deformable convolution; in a ResNet it takes the place of the 3x3 convolution.

    Args:
        channels: C.
        inner_channels: channels of its output; a 1x1 convolution then leads back to C. None: C channels, without the
            1x1 convolution.

    Source: see [`DeformableConv2d`][dgmn.layers.DeformableConv2d].
    """
    if inner_channels is None:
        return DeformableConv2d(channels, channels)
    check_number("inner_channels", inner_channels)
    expand = nn.Conv2d(inner_channels, channels, 1)
    return nn.Sequential(OrderedDict(sampled=DeformableConv2d(channels, inner_channels), expand=expand))


def none(channels: int) -> nn.Module:
    """The identity, for the baseline."""
    return nn.Identity()


MODULES: Mapping[str, Callable[..., nn.Module]] = {
    "none": none,
    "dgmn": DGMN,
    "deformable_message_passing": partial(DGMN, groups=0, dynamic_affinity=False),
    "deformable": deformable,
    "aspp": aspp,
    "non_local": non_local,
    "global_context": global_context,
    "criss_cross": CrissCross,
}
"""The modules by the names that networks and recipes use. Each takes a number of channels and its own options."""


def context_module(name: str, channels: int, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds one of [`MODULES`][dgmn.layers.context.MODULES].

    Args:
        name: "dgmn", "deformable_message_passing", "deformable", "aspp", "non_local", "global_context", "criss_cross"
            or "none".
        channels: channels of the module's input and output.
        args: more arguments of the module, for instance `{"sampling_rates": [1, 6, 12]}`.

    Raises:
        InputError: there is no such module, or it does not take these arguments. This is a ValueError.
    """
    if not isinstance(name, str) or name not in MODULES:
        raise InputError(f"module: no {name!r}; one of {', '.join(MODULES)}")
    try:
        check_number("channels", channels)
        return MODULES[name](channels, **(args or {}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"module_args: {name} cannot be built for {channels} channels with {args}: {error}") from error

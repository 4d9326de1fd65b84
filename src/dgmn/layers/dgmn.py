"""The DGMN module for convolutional networks: messages of sampled nodes with predicted weights (paper, section 3)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dgmn.errors import check_finite, check_flag, check_number
from dgmn.ops import sampled_aggregate
from dgmn.ops.library import MAX_DILATION
from dgmn.ops.linear import linear
from dgmn.ops.precision import PreciseConv2d, compute_dtype, without_autocast
from dgmn.ops.tracing import channels_last, opaque

_SIDE = 3
_NODES = _SIDE * _SIDE  # K
_MAX_HEAD = 256  # the most channels of a head that the CUDA kernels accept


def _parts(channels: int) -> int:
    """Into how many equal parts to split the channels: the fewest whose size every kernel accepts."""
    return next(n for n in range(1, channels + 1) if channels % n == 0 and channels // n <= _MAX_HEAD)


def sampled_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    walks: Tensor,
    masks: Tensor | None = None,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """A deformable convolution of stride 1: every tap of the kernel reads the map at a sampled node.

    Args:
        x: the map, (B, C, H, W).
        weight: (D, C, side, side), of an odd side, whose K = side * side taps lie around the position.
        bias: (D,), or none.
        walks: of the taps, in pixels as (dy, dx), (B, H, W, K, 2).
        masks: factors of the taps, (B, H, W, K), or none.
        dilation: distance of the taps, in pixels.
        backend: one of [`BACKENDS`][dgmn.ops.BACKENDS].

    Returns:
        (B, H, W, D), in at least float32.
    """
    # The products are computed first, tap by tap. Then their results are sampled. Both steps are linear, so the order
    # makes no difference. But this order samples fewer channels and never holds the K sampled nodes.
    outputs, _, side, _ = weight.shape
    taps, parts = side * side, _parts(outputs)
    maps = linear(x.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1).flatten(0, 2))
    # Every tap is a head with one node, at the tap's place in the grid.
    steps = torch.arange(-(side // 2), side // 2 + 1, device=x.device, dtype=walks.dtype) * dilation
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(taps, 2)
    if masks is None:
        masks = walks.new_ones(1, 1, 1, 1).expand(walks.shape[:-1])
    sampled = sampled_aggregate(
        maps.reshape(*maps.shape[:3], taps * parts, outputs // parts),
        (walks + grid).repeat_interleave(parts, 3).unsqueeze(4),
        masks.repeat_interleave(parts, 3).unsqueeze(4),
        kernel_size=1,
        backend=backend,
    )
    of_taps = sampled.reshape(*sampled.shape[:3], taps, outputs)
    out = of_taps.sum(3, dtype=compute_dtype(of_taps))
    return out if bias is None else out + bias


class SampledConv2d(nn.Conv2d):
    """A 3x3 convolution that can read sampled nodes instead of the grid: a deformable convolution (v' of eq. 6).

    Shape:
        x (B, C, H, W) and walks (B, H, W, K, 2), in pixels as (dy, dx), to (B, out_channels, H, W). Without walks it is
        `nn.Conv2d`. With walks the output has at least float32.
    """

    def forward(self, x: Tensor, walks: Tensor | None = None, backend: str = "auto") -> Tensor:
        if walks is None:
            return super().forward(x)
        out = sampled_convolution(x, self.weight, self.bias, walks, dilation=self.dilation[0], backend=backend)
        return out.permute(0, 3, 1, 2)


class DGMNMessage(nn.Module):
    """The message of one sampling rate: `Σ_j A_ij ϱ(h_j | V, j, Δd_j) w_j` (eq. 5 without β).

    `filters` predicts the weights and the affinities of a position jointly, from its sampled nodes. Its first G * K
    channels are the weights, group by group. Its last K channels are the logits of the affinities. If neither is
    predicted, `filters` is a convolution with learned weights, w_j of eq. 1. See
    [`DGMN`][dgmn.layers.DGMN] for the equations and the forms.

    Shape:
        (B, C, H, W) to (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        sampling_rate: int,
        groups: int,
        dynamic_affinity: bool,
        dynamic_sampling: bool,
        released: bool,
        affinities_at: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.groups = groups
        self.dynamic_affinity = dynamic_affinity
        self.released = released
        self.affinities_at = affinities_at  # first channel of `filters` that is read as logits
        self.backend = "auto"  # backend of the ops, see dgmn.ops.BACKENDS
        self.fixed = not (dynamic_affinity or groups)
        predicted = _NODES * (groups + dynamic_affinity)
        grid: dict[str, Any] = {"kernel_size": _SIDE, "padding": sampling_rate, "dilation": sampling_rate}
        self.sampling_rate = sampling_rate
        self.walks: PreciseConv2d | None = None
        if dynamic_sampling:  # precise, because walks are added to pixel coordinates
            self.walks = PreciseConv2d(channels, 2 * _NODES, **grid, bias=not released, **dd)
        bias = not released and not self.fixed
        self.filters = SampledConv2d(channels, predicted or channels, **grid, bias=bias, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.filters.reset_parameters()
        if self.walks is not None:  # start on the regular grid, as deformable convolutions do
            nn.init.zeros_(self.walks.weight)
            if self.walks.bias is not None:
                nn.init.zeros_(self.walks.bias)

    def predict_walks(self, x: Tensor) -> Tensor | None:
        """Walks Δd of every position's nodes, (B, H, W, K, 2) in pixels as (dy, dx); None without dynamic sampling."""
        if self.walks is None:
            return None
        with without_autocast(x):
            walks: Tensor = self.walks(x)
        batch, _, height, width = walks.shape
        return walks.permute(0, 2, 3, 1).reshape(batch, height, width, _NODES, 2)

    def predict_weights(self, x: Tensor, walks: Tensor | None) -> Tensor:
        """A_ij w_j of every position, (B, H, W, G, K). Without dynamic weights: A_ij alone, (B, H, W, 1, K).

        Raises:
            ValueError: the message predicts neither weights nor affinities.
        """
        weight, affinity = self.predict_parts(x, walks)
        if weight is None or affinity is None:
            known = affinity if weight is None else weight
            if known is None:
                raise ValueError("predict_weights: this message has neither dynamic weights nor dynamic affinity")
            return known
        return weight * affinity

    def predict_parts(self, x: Tensor, walks: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weights w_j, (B, H, W, G, K), and affinities A_ij, (B, H, W, 1, K); None for a part that is not predicted."""
        if self.fixed:
            return None, None
        maps = self.filters(x, walks, self.backend).permute(0, 2, 3, 1)
        # The softmax and the product of both are in float32, also under autocast.
        maps = maps.to(compute_dtype(maps))
        batch, height, width, _ = maps.shape
        weight = maps[..., : _NODES * self.groups].reshape(batch, height, width, self.groups, _NODES)
        if not self.dynamic_affinity:
            return (weight.softmax(-1) if self.released else weight), None
        logits = maps[..., self.affinities_at : self.affinities_at + _NODES]
        affinity = logits.softmax(-1).unsqueeze(3)  # eq. 7
        return (weight if self.groups else None), affinity

    def forward(self, x: Tensor) -> Tensor:
        walks = self.predict_walks(x)
        if self.fixed:
            out: Tensor = self.filters(x, walks, self.backend)
            return out.to(x.dtype)
        weight = self.predict_weights(x, walks)
        batch, channels, height, width = x.shape
        groups = self.groups or 1
        parts = _parts(channels // groups)
        if parts > 1:
            weight = weight.repeat_interleave(parts, 3)
        if walks is None:
            walks = weight.new_zeros(1, 1, 1, 1, 1).expand(batch, height, width, _NODES, 2)
        message = sampled_aggregate(
            x.permute(0, 2, 3, 1).reshape(batch, height, width, groups * parts, channels // groups // parts),
            walks.unsqueeze(3),
            weight,
            dilation=self.sampling_rate,
            backend=self.backend,
        )
        return message.flatten(3).permute(0, 3, 1, 2)


@opaque
class DGMN(nn.Module):
    """Dynamic graph message passing on a feature map (eq. 1 to 7).

    Every position is a node of a graph. At every sampling rate it receives the message of K = 3 x 3 nodes. They lie
    on a grid of that dilation and are moved by predicted walks Δd (dynamic sampling, eq. 4). From the sampled nodes,
    the module predicts their affinities A_ij, a softmax over the K nodes, and their weights w_j, one number for every
    group of channels (eq. 6 and 7). The input is f, and h starts as f. The module computes, `steps` times:

    `m_q = Σ_j A_ij ϱ(h_j | V, j, Δd_j) w_j` (eq. 5), `h = σ(f + Σ_q β_q m_q)` (eq. 2).

    Forms:

    * "paper": the equations. σ is ReLU, the predictors have biases. Without dynamic affinity A is 1.
    * "released": what the authors' published code computes; its weights need this form. No σ, no biases. Without
      dynamic affinity the weights go through a softmax over the nodes. With dynamic affinity, the fourth sampling
      rate also takes the weights of the last group as the logits of the affinities. Its own logits stay unused.

    Without dynamic weights and dynamic affinity, w_j is a learned C x C matrix (eq. 1). The message is then a
    convolution. With dynamic sampling it is a deformable one ("deformable message passing" in Table 3).

    Args:
        channels: C.
        sampling_rates: φ, each gives one message. The paper uses (1, 4, 8, 12) for detection and (1, 6, 12, 24, 36)
            for segmentation.
        groups: G, the groups of channels that have their own weights, a divisor of `channels`; 0: no dynamic weights.
        dynamic_affinity: predict affinities.
        dynamic_sampling: predict walks. Table 2 of the paper gives the costs without it.
        steps: T, message passing steps, which share all parameters.
        fusion: "sum" as above. "concat": `h = σ(W [f, m_1, .., m_S])`, where W is a 1x1 convolution. Table 2 of
            the paper gives the cost of "concat".
        form: "paper" or "released".
        initial_beta: start value of every β_q. At 0, the module starts as the identity (in the paper's form on
            maps that have passed a ReLU). The published code uses 1.

    Shape:
        (B, C, H, W) to (B, C, H, W), of any height and width.

    Raises:
        ValueError: a map or number does not fit, the fusion or form is unknown, or the released form is asked for a
            variant that was never released: without dynamic weights, with affinities but no walks, or with other
            than four sampling rates.

    Source: Zhang et al., Dynamic Graph Message Passing Networks, CVPR 2020; section 3 of
    https://arxiv.org/abs/2209.09760.
    """

    def __init__(
        self,
        channels: int,
        sampling_rates: Sequence[int] = (1, 4, 8, 12),
        groups: int = 4,
        dynamic_affinity: bool = True,
        dynamic_sampling: bool = True,
        steps: int = 1,
        fusion: Literal["sum", "concat"] = "sum",
        form: Literal["paper", "released"] = "paper",
        initial_beta: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_number("channels", channels)
        check_number("steps", steps)
        check_number("groups", groups, at_least=0)
        check_flag("dynamic_affinity", dynamic_affinity)
        check_flag("dynamic_sampling", dynamic_sampling)
        check_finite("initial_beta", initial_beta)
        given = sampling_rates
        sampling_rates = tuple(given) if isinstance(given, Iterable) else ()
        if not sampling_rates:
            raise ValueError(f"sampling_rates must be whole numbers, at least one, got {given!r}")
        for rate in sampling_rates:
            check_number("sampling_rates", rate)
            if rate > MAX_DILATION:
                raise ValueError(f"sampling_rates must be at most {MAX_DILATION}, got {rate}")
        if groups and channels % groups:
            raise ValueError(f"groups must divide channels = {channels}, got {groups}")
        if fusion not in ("sum", "concat"):
            raise ValueError(f'fusion must be "sum" or "concat", got {fusion!r}')
        if form not in ("paper", "released"):
            raise ValueError(f'form must be "paper" or "released", got {form!r}')
        released = form == "released"
        if released and not groups:
            raise ValueError('form "released" needs dynamic weights, got groups = 0')
        if released and dynamic_affinity and not dynamic_sampling:
            raise ValueError('form "released" has dynamic_affinity only with dynamic_sampling')
        if released and len(sampling_rates) != 4:
            raise ValueError(f'form "released" needs four sampling_rates, got {len(sampling_rates)}')
        dd = {"device": device, "dtype": dtype}
        self.channels = channels
        self.sampling_rates = sampling_rates
        self.steps = steps
        self.fusion = fusion
        self.form = form
        self.initial_beta = initial_beta
        self.messages = nn.ModuleList()
        for index, rate in enumerate(sampling_rates):
            # The published code has this slip, and its weights were trained with it.
            affinities_at = _NODES * (groups - (released and index == 3))
            switches = (groups, dynamic_affinity, dynamic_sampling, released, affinities_at)
            self.messages.append(DGMNMessage(channels, rate, *switches, **dd))
        self.beta: nn.ParameterList | None = None
        if fusion == "sum":
            self.beta = nn.ParameterList(nn.Parameter(torch.empty(1, **dd)) for _ in sampling_rates)
        else:
            self.fuse = nn.Conv2d((len(sampling_rates) + 1) * channels, channels, 1, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for beta in self.beta or ():
            nn.init.constant_(beta, self.initial_beta)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            wanted = f"(B, {self.channels}, H, W), neither H nor W zero"
            raise ValueError(f"x must have the shape {wanted}, got {tuple(x.shape)}")
        state = x
        for _ in range(self.steps):
            # The kernels read all channels of a node at once.
            nodes = channels_last(state)
            messages = [message(nodes) for message in self.messages]
            if self.beta is None:
                state = self.fuse(torch.cat([x, *messages], 1))
            else:
                state = x
                for beta, message in zip(self.beta, messages, strict=True):
                    state = state + beta * message
            if self.form == "paper":
                state = state.relu()
        return state

    def extra_repr(self) -> str:
        rates = f"sampling_rates={self.sampling_rates}"
        return f"{self.channels}, {rates}, steps={self.steps}, fusion={self.fusion}, form={self.form}"

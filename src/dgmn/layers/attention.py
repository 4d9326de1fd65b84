"""The DGMN2 Transformer layer: attention from every position to nine sampled nodes (paper, section 4.1)."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, Mlp, trunc_normal_
from torch import Tensor, nn

from dgmn.errors import check_number, check_share
from dgmn.layers.packed import PackedLinear, packed_perceptron
from dgmn.ops import position_scores, sampled_attention
from dgmn.ops.linear import add_linear, is_compiled_inference, is_inference_on_cpu, linear, perceptron
from dgmn.ops.precision import PreciseLinear, compute_dtype, without_autocast
from dgmn.ops.reference import attention_weights, sampling_points
from dgmn.ops.tracing import is_exporting, is_plain, is_recorded_as, is_symbolic, is_watched, opaque, surely_equal

LINEAR = (nn.Linear, PackedLinear)  # classes whose weights may be used without a call

torch.fx.wrap("sampled_attention")  # torch.fx cannot look into it


@opaque
class RelativePosition(nn.Module):
    """Position term of the attention logits, r_j of eq. 9 (Fig. 4b).

    Two tables hold one row of `dim` numbers for every distance along the height and the width. Node s of
    position (y, x) gets `query(y, x) · rel_width[W - 1 - x + s]` plus the same along the height. A position
    costs 2K dot products, whatever the size of the map. Both tables are resized linearly to the map.

    Args:
        dim: channels of one head.
        map_size: height and width of the map that the tables are made for.
        nodes: sampled nodes of a position, K.
        rel_pos: "aligned": the height term at (y, x) comes from the query at (y, x), as the paper says.
            "official": it comes from the query at the mirrored position (x, y). If the map is not square, the
            mirrored term is stretched to the map. The published weights were trained with "official".

    Shape:
        query (B, H, W, heads, dim) to bias (B, H, W, heads, K), in float32 (float64 for float64 input).
    """

    def __init__(
        self,
        dim: int,
        map_size: tuple[int, int],
        nodes: int = 9,
        rel_pos: Literal["official", "aligned"] = "official",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if rel_pos not in ("official", "aligned"):
            raise ValueError(f'rel_pos must be "official" or "aligned", got {rel_pos!r}')
        self.nodes = nodes
        self.rel_pos = rel_pos
        check_number("dim", dim)
        check_number("nodes", nodes)
        if not isinstance(map_size, tuple | list) or len(map_size) != 2:
            raise ValueError(f"map_size must be a height and a width, got {map_size!r}")
        height, width = map_size
        for side in map_size:
            check_number("map_size", side)
        self.rel_height = nn.Parameter(torch.empty(height + nodes - 1, dim, device=device, dtype=dtype))
        self.rel_width = nn.Parameter(torch.empty(width + nodes - 1, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both tables anew, from a normal distribution of standard deviation dim^-0.5, as the original does."""
        for table in (self.rel_height, self.rel_width):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def _resized(self, table: Tensor, length: int) -> Tensor:
        rows = length + self.nodes - 1
        if surely_equal(table.shape[0], rows):
            return table
        return F.interpolate(table.to(compute_dtype(table)).T[None], size=rows, mode="linear", align_corners=False)[0].T

    def forward(self, query: Tensor, backend: str = "auto") -> Tensor:
        _, height, width, _, _ = query.shape
        rows, columns = self._resized(self.rel_height, height), self._resized(self.rel_width, width)
        mirrored = self.rel_pos == "official"
        return position_scores(query, rows, columns, nodes=self.nodes, mirrored=mirrored, backend=backend)

    def extra_repr(self) -> str:
        rows = f"{self.rel_height.shape[0]}+{self.rel_width.shape[0]}"
        return f"rows={rows}, nodes={self.nodes}, rel_pos={self.rel_pos}"


class DGMN2Attention(nn.Module):
    """Message passing of DGMN2 with query, key and value (eq. 8 and 9).

    Every position predicts where its K nodes lie (the walks Δd_j, eq. 4), reads key and value there and
    sums the values with a softmax over K. One linear layer, shared by all heads, predicts the walks of a head
    from its share of the input channels. As in the original, its weights start small (a standard deviation of 0.02), so
    that the nodes start near the regular grid.

    Args:
        dim: channels C.
        num_heads: heads, a divisor of `dim`.
        map_size: height and width of the map that the relative position is made for; other sizes work too.
        kernel_size: K = kernel_size² nodes.
        rel_pos: "official" or "aligned", see [`RelativePosition`][dgmn.layers.RelativePosition].
        attn_drop: dropout of attention weights.
        proj_drop: dropout after the output projection.

    Shape:
        (B, H, W, C) to (B, H, W, C).

    Raises:
        ValueError: an argument, or the input's shape, is not as above.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: tuple[int, int],
        kernel_size: int = 3,
        rel_pos: Literal["official", "aligned"] = "official",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, number in {"dim": dim, "num_heads": num_heads, "kernel_size": kernel_size}.items():
            check_number(name, number)
        check_share("attn_drop", attn_drop)
        if attn_drop == 1:
            raise ValueError("attn_drop must be below 1: with 1, nothing would be left")
        check_share("proj_drop", proj_drop)
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim = {dim}, got {num_heads}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.kernel_size = kernel_size
        self.attn_drop = attn_drop
        self.backend = "auto"  # backend of the ops, see dgmn.ops.BACKENDS
        nodes = kernel_size * kernel_size
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.offset = PreciseLinear(self.head_dim, 2 * nodes, **dd)  # walks are added to pixel coordinates
        self.rel_pos = RelativePosition(self.head_dim, map_size, nodes, rel_pos, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights of the layer that predicts the walks anew."""
        trunc_normal_(self.offset.weight, std=0.02)
        nn.init.zeros_(self.offset.bias)

    def predict_walks(self, x: Tensor) -> Tensor:
        """Walks Δd of every position's nodes, (B, H, W, heads, K, 2) in pixels as (dy, dx)."""
        batch, height, width, _ = x.shape
        with without_autocast(x):
            walks: Tensor = self.offset(x.reshape(batch, height, width, self.num_heads, self.head_dim))
        return walks.reshape(batch, height, width, self.num_heads, self.kernel_size**2, 2)

    def predict_weights(self, x: Tensor, walks: Tensor) -> Tensor:
        """Softmax over the nodes of every position, (B, H, W, heads, K). `forward` does not return or keep it."""
        query, key, _ = self._project(x)
        points = sampling_points(walks, self.kernel_size, 1)
        return attention_weights(query, key, *points, self.rel_pos(query, self.backend), self.head_dim**-0.5)

    def query_key_value(self, x: Tensor) -> Tensor:
        """Query, key and value side by side, (B, H, W, 3C); a subclass may compute them in another way."""
        return _linear(self.qkv, x)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, (B, H, W, heads, D)."""
        batch, height, width, _ = x.shape
        qkv = self.query_key_value(x).reshape(batch, height, width, 3, self.num_heads, self.head_dim)
        if is_exporting() and not is_recorded_as("kernels", "standard"):
            # Once for all three, as the exported attention wants them.
            maps = qkv.permute(0, 3, 4, 5, 1, 2).unbind(1)
            return tuple(each.permute(0, 3, 4, 1, 2) for each in maps)
        return qkv.unbind(3)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The messages, added to `residual` if it is given."""
        if not is_symbolic(x):  # torch.fx knows no shapes
            channels = self.num_heads * self.head_dim
            if not isinstance(x, Tensor):
                raise TypeError(f"x must be a tensor, got {type(x).__name__}")
            if x.dim() != 4 or x.shape[-1] != channels:
                raise ValueError(f"x must have the shape (B, H, W, {channels}), got {tuple(x.shape)}")
            if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
                return residual + self.forward(x)  # spread as in any sum, and in the wider dtype
        batch, height, width, dim = x.shape
        query, key, value = self._project(x)
        x = sampled_attention(
            query,
            key,
            value,
            self.predict_walks(x),
            self.rel_pos(query, self.backend),
            kernel_size=self.kernel_size,
            dropout_p=self.attn_drop if self.training else 0.0,
            backend=self.backend,
        )
        x = x.reshape(batch, height, width, dim)
        plain = is_plain(self.proj, *LINEAR) and not _drops(self.proj_drop)
        if residual is not None and plain and isinstance(self.proj, PackedLinear) and self.proj.packs(x, residual):
            return self.proj.added(residual, x)
        plain = plain and self.proj.bias is not None
        if residual is not None and plain and is_inference_on_cpu((residual, x, *self.proj.parameters())):
            return add_linear(residual, x, self.proj.weight, self.proj.bias)
        out: Tensor = self.proj_drop(_linear(self.proj, x))
        return out if residual is None else residual + out


def _drops(layer: nn.Module) -> bool:
    """Whether a layer of dropout does anything: some draw in evaluation, too, and switch on these layers only."""
    return not (isinstance(layer, nn.Dropout) and is_plain(layer, nn.Dropout)) or (layer.training and layer.p > 0)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of a linear layer, or of what stands in its place."""
    if isinstance(layer, nn.Linear) and is_plain(layer, *LINEAR) and layer.bias is not None:
        tensors = (x, layer.weight, layer.bias)
        ours = type(layer) is nn.Linear and not is_watched((x,))  # other graphs name the layer
        if ours or is_compiled_inference(*tensors):
            return linear(*tensors)
    out: Tensor = layer(x)
    return out


@opaque
class DGMN2Mlp(Mlp):
    """timm's two-layer perceptron, computed some positions at a time: see `dgmn.ops.linear`."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The output, added to `residual` if it is given."""
        first, second = self.fc1, self.fc2
        plain = is_plain(self.act, nn.GELU) and is_plain(first, *LINEAR) and is_plain(second, *LINEAR)
        plain = plain and is_plain(self.norm, nn.Identity) and not (_drops(self.drop1) or _drops(self.drop2))
        plain = plain and self.act.approximate == "none" and first.bias is not None and second.bias is not None
        added = () if residual is None else (residual,)
        watched = is_watched((x,)) and not is_compiled_inference(x, *first.parameters(), *second.parameters(), *added)
        if not plain or watched:
            out: Tensor = super().forward(x)
            return out if residual is None else residual + out
        packed = isinstance(first, PackedLinear) and isinstance(second, PackedLinear)
        if packed and first.packs(x, *second.parameters(), *added) and second.weight.is_contiguous():
            return packed_perceptron(x, first, second, residual)
        return perceptron(x, first.weight, first.bias, second.weight, second.bias, residual)


class DGMN2Block(nn.Module):
    """One DGMN2 layer: attention and a two-layer perceptron, each with a LayerNorm before it and a residual around it.

    Args:
        dim: channels C.
        num_heads: heads of the attention.
        map_size: see [`DGMN2Attention`][dgmn.layers.DGMN2Attention].
        mlp_ratio: width of the hidden layer over `dim`.
        rel_pos: see [`DGMN2Attention`][dgmn.layers.DGMN2Attention].
        attn_drop: dropout of attention weights.
        proj_drop: dropout after the attention's projection and in the perceptron.
        drop_path: probability to leave out a residual branch (stochastic depth).

    Shape:
        (B, H, W, C) to (B, H, W, C).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: tuple[int, int],
        mlp_ratio: float = 4.0,
        rel_pos: Literal["official", "aligned"] = "official",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not 1 <= dim * mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio must leave the MLP a channel or more, got {mlp_ratio!r} for dim = {dim}")
        dd = {"device": device, "dtype": dtype}
        self.norm1 = LayerNorm(dim, eps=1e-6, **dd)
        self.attn = DGMN2Attention(
            dim, num_heads, map_size, rel_pos=rel_pos, attn_drop=attn_drop, proj_drop=proj_drop, **dd
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = DGMN2Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self._add(x, self.norm1(x), self.attn, self.drop_path1)
        return self._add(x, self.norm2(x), self.mlp, self.drop_path2)

    def _add(self, residual: Tensor, x: Tensor, branch: nn.Module, drop_path: nn.Module) -> Tensor:
        """The output of a branch, added to the residual. A branch of ours does that with fewer passes in inference.

        Hooks and modules put in its place get what the branch alone computes.
        """
        ours = is_plain(branch, DGMN2Attention, DGMN2Mlp) and is_plain(drop_path, DropPath)
        out: Tensor = branch(x, residual) if ours and not drop_path.training else residual + drop_path(branch(x))
        return out

"""The relative position term as fused GPU kernels in Triton, forward and backward, on plain tensors.

All arguments have the shapes and meaning of those in `reference.py`. A program reads some rows of the tables for every
position: they stay in the cache.
"""

# Kernel arguments have no Python types, and Triton's constants are written in capitals.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgmn.ops.triton_kernels import (
    INTERPRETED,
    INTERPRETER_TILE,
    alert_not_deterministic,
    alike,
    compiled,
    is_wide,
    load,
    rows_of,
    start_of,
)

# Positions that a program for the tables takes at a time.
BLOCK = 64


@compiled
def _position_forward_kernel(
    query, rows, columns, scores, strides, positions, heads, height, width,
    MIRRORED: tl.constexpr, NODES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row, live, place = rows_of(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = tl.arange(0, BLOCK_D)[None, :]
    mask = live[:, None] & (channel < D)
    q = load(query + start_of(strides, place)[:, None] + channel, mask)
    # The height term of the mirrored position (x, y) comes from the row of the table for x.
    down = q
    step = place[1]
    if MIRRORED:
        mirror = (place[0], place[2], place[1], place[3])
        down = load(query + start_of(strides, mirror)[:, None] + channel, mask)
        step = place[2]
    for node in range(NODES):
        score = tl.zeros(row.shape, tl.float32)
        if columns is not None:
            score += tl.sum(q * load(columns + (width - 1 - place[2] + node)[:, None] * D + channel, mask), axis=1)
        if rows is not None:
            score += tl.sum(down * load(rows + (height - 1 - step + node)[:, None] * D + channel, mask), axis=1)
        tl.store(scores + row * NODES + node, score, mask=live)


@compiled
def _position_query_kernel(
    grad_scores, rows, columns, grad_query, positions, heads, height, width,
    MIRRORED: tl.constexpr, NODES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row, live, place = rows_of(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = tl.arange(0, BLOCK_D)[None, :]
    mask = live[:, None] & (channel < D)
    across = grad_scores + row * NODES
    down = across
    if MIRRORED:
        mirrored = (place[0] * height + place[2]) * width + place[1]
        down = grad_scores + (mirrored * heads + place[3]) * NODES
    sums = tl.zeros((row.shape[0], BLOCK_D), tl.float32)
    for node in range(NODES):
        if columns is not None:
            entry = columns + (width - 1 - place[2] + node)[:, None] * D + channel
            sums += load(across + node, live)[:, None] * load(entry, mask)
        if rows is not None:
            entry = rows + (height - 1 - place[1] + node)[:, None] * D + channel
            sums += load(down + node, live)[:, None] * load(entry, mask)
    tl.store(grad_query + row[:, None] * D + channel, sums, mask=mask)


@compiled
def _position_table_kernel(
    grad_scores, query, grad_table, strides, positions, heads, height, width, programs,
    ROWS: tl.constexpr, MIRRORED: tl.constexpr, NODES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_NODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the gradients of the K rows that one line of the map reads, over a share of the positions on that line.

    A line is a row of the map for the table of the height, and a column of it for the table of the width. `positions`
    counts those on a line, of all images and heads.
    """
    line = tl.program_id(0)
    if WIDE:
        line = line.to(tl.int64)
    node = tl.arange(0, BLOCK_NODES)
    channel = tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_NODES, BLOCK_D), tl.float32)
    length = width if ROWS else height
    for start in range(tl.program_id(1) * BLOCK, positions, programs * BLOCK):
        index = start + tl.arange(0, BLOCK)
        live = index < positions
        if WIDE:
            index = index.to(tl.int64)
        head = index % heads
        batch = index // heads // length
        y = line if ROWS else index // heads % length
        x = index // heads % length if ROWS else line
        entry = query + start_of(strides, (batch, y, x, head))[:, None] + channel[None, :]
        q = tl.load(entry, mask=live[:, None] & (channel < D)[None, :], other=0.0).to(tl.float32)
        position = (batch * height + x) * width + y if MIRRORED else (batch * height + y) * width + x
        entry = grad_scores + ((position * heads + head) * NODES)[None, :] + node[:, None]
        grad = tl.load(entry, mask=live[None, :] & (node < NODES)[:, None], other=0.0).to(tl.float32)
        sums += tl.dot(grad, q, input_precision="ieee")
    last = height - 1 if ROWS else width - 1
    entry = grad_table + (last - line + node)[:, None] * D + channel[None, :]
    tl.atomic_add(entry, sums, mask=(node < NODES)[:, None] & (channel < D)[None, :], sem="relaxed")


def position_forward(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> Tensor:
    """The scores, contiguous, in float32."""
    (query,) = alike(query)
    scores = torch.empty((*query.shape[:4], nodes), dtype=torch.float32, device=query.device)
    arguments = (query, *_contiguous(rows, columns), scores, query.stride()[:4])
    _launch(_position_forward_kernel, arguments, query, mirrored, nodes)
    return scores


def position_backward(
    grad_scores: Tensor, query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of query and both tables, each in the dtype and shape of its input."""
    alert_not_deterministic("position_scores")
    nodes = grad_scores.shape[-1]
    (query,) = alike(query)
    grad_scores = grad_scores.contiguous()
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    arguments = (grad_scores, *_contiguous(rows, columns), grad_query)
    _launch(_position_query_kernel, arguments, query, mirrored, nodes)
    grad_rows = None if rows is None else _table_gradient(grad_scores, query, rows, True, mirrored)
    grad_columns = None if columns is None else _table_gradient(grad_scores, query, columns, False, False)
    return grad_query, grad_rows, grad_columns


def _contiguous(*tables: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if table is None else table.contiguous() for table in tables)


def _table_gradient(grad_scores: Tensor, query: Tensor, table: Tensor, of_rows: bool, mirrored: bool) -> Tensor:
    batch, height, width, heads, dim = query.shape
    nodes = grad_scores.shape[-1]
    lines, length = (height, width) if of_rows else (width, height)
    positions = batch * length * heads
    sums = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
    if positions:
        # A thousand programs occupy a GPU. More would only add to the same few numbers, one after another.
        programs = min(triton.cdiv(positions, BLOCK), max(1, 1024 // lines))
        with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
            _position_table_kernel[(lines, programs)](
                *(grad_scores, query, sums, query.stride()[:4], positions, heads, height, width, programs),
                ROWS=of_rows,
                MIRRORED=mirrored,
                NODES=nodes,
                D=dim,
                BLOCK_D=max(16, triton.next_power_of_2(dim)),
                WIDE=is_wide(query, nodes),
                BLOCK_NODES=max(16, triton.next_power_of_2(nodes)),
                BLOCK=BLOCK,
                num_warps=4,
            )
    return sums.to(table.dtype)


def _launch(kernel: Any, arguments: tuple[Any, ...], query: Tensor, mirrored: bool, nodes: int) -> None:
    batch, height, width, heads, dim = query.shape
    positions = batch * height * width
    if positions == 0:
        return
    block = max(16, triton.next_power_of_2(dim))
    tile, warps = (INTERPRETER_TILE if INTERPRETED else 512), 4
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        kernel[(triton.cdiv(positions, max(1, tile // block)) * heads,)](
            *arguments,
            positions,
            heads,
            height,
            width,
            MIRRORED=mirrored,
            NODES=nodes,
            D=dim,
            BLOCK_D=block,
            WIDE=is_wide(query, nodes),
            TILE=tile,
            num_warps=warps,
            num_stages=1,
        )

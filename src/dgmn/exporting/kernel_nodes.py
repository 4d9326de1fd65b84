"""The primitives as single nodes of an ONNX graph, which our library for onnxruntime computes (`csrc/onnxruntime.cpp`).

They are in the domain "dgmn" and have the names and layouts of `dgmn.ops`, so no transposition stands around them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.onnx import symbolic_helper

from dgmn.ops.tracing import recorded_as


@contextmanager
def kernel_nodes(opset: int) -> Iterator[None]:
    """Graphs that are recorded get these nodes, and not standard operators."""
    onnx: Any = torch.onnx  # the functions for this are public, but not listed
    names = {f"dgmn::{name}": node for name, node in _NODES.items()}
    for name, node in names.items():
        onnx.register_custom_op_symbolic(name, node, opset)
    try:
        with recorded_as("kernels"):
            yield
    finally:
        for name in names:
            onnx.unregister_custom_op_symbolic(name, opset)


@symbolic_helper.parse_args("v", "v", "v", "v", "v", "f", "i", "i", "s")
def _attention(
    graph: Any,
    query: Any,
    key: Any,
    value: Any,
    offset: Any,
    bias: Any,
    scale: float,
    kernel_size: int,
    dilation: int,
    backend: str,
) -> Any:
    numbers = {"scale_f": scale, "kernel_size_i": kernel_size, "dilation_i": dilation}
    out = _shaped(graph.op("dgmn::SampledAttention", query, key, value, offset, bias, **numbers), value)
    return out, out  # the second is for gradients only, and nothing reads it


@symbolic_helper.parse_args("v", "v", "v", "i", "i", "s")
def _aggregate(graph: Any, value: Any, offset: Any, weight: Any, kernel_size: int, dilation: int, backend: str) -> Any:
    numbers = {"kernel_size_i": kernel_size, "dilation_i": dilation}
    return _shaped(graph.op("dgmn::SampledAggregate", value, offset, weight, **numbers), value)


@symbolic_helper.parse_args("v", "v", "v", "b", "i", "s")
def _position(graph: Any, query: Any, rows: Any, columns: Any, mirrored: bool, nodes: int, backend: str) -> Any:
    scores = graph.op("dgmn::PositionScores", query, rows, columns, mirrored_i=int(mirrored), nodes_i=nodes)
    return _shaped(scores, query, nodes)


def _shaped(out: Any, like: Any, last: int | None = None) -> Any:
    """Gives an output the sizes of an input, and another last one. Those that vary stay open.

    Taken from the input's type they would have one name in all nodes, so that onnxruntime mistook one map for another.
    """
    sizes = like.type().varyingSizes() or [None] * 5
    return out.setType(like.type().with_sizes([*sizes[:4], sizes[4] if last is None else last]))


_NODES = {"sampled_attention": _attention, "sampled_aggregate": _aggregate, "position_scores": _position}

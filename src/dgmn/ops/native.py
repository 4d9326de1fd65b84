"""The native CPU kernels (`csrc/`), called with ctypes: plain tensors in and out.

The library is optional. Without it, `LIBRARY` is None and everything runs on the reference.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ABI = 3
_DTYPES = (torch.float32, torch.bfloat16)
_MAX_POSITIONS = 2**30  # positions have 32 bits, and those of a node's corners reach a row beyond the map


class _Map(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("position", ctypes.c_int64),
        ("head", ctypes.c_int64),
    )


class _Problem(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("batch", "height", "width", "heads", "dim", "kernel_size", "dilation", "offset_heads"),
            *("bfloat16", "threads", "target", "part", "parts"),
        )
    )


_PATH = Path(__file__).resolve().parent.parent / "_native.so"


def load(path: Path = _PATH) -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not path.is_file():
        return None, "were not built. Install a C++ compiler, then dgmn again"
    # torch is already imported, so our library is bound to the OpenMP runtime that torch loaded.
    try:
        library = ctypes.CDLL(str(path))
        library.dgmn_target_name.restype = ctypes.c_char_p
        library.dgmn_target_name.argtypes = (ctypes.c_int64,)
        if library.dgmn_abi() == _ABI:
            return library, None
    except OSError as error:
        return None, f"cannot be loaded ({error}). Install dgmn again"
    except AttributeError:  # it lacks a function
        pass
    return None, f"in {path} are those of another version. Install dgmn again"


LIBRARY, PROBLEM = load()
"""The library with the kernels, or None; and what is wrong with the kernels then, as the end of a sentence."""

_target = 0  # instruction set; 0 stands for the best; tests set others


def targets() -> dict[str, int]:
    """The instruction sets that this processor supports: name to number."""
    if LIBRARY is None:
        return {}
    named = {LIBRARY.dgmn_target_name(i): i for i in range(1, 4)}
    return {name.decode(): i for name, i in named.items() if name is not None}


def unsupported(value: Tensor) -> str | None:
    """Why the kernels cannot run on a map like this, or None."""
    if LIBRARY is None:
        return f"the CPU kernels {PROBLEM}"
    if value.device.type != "cpu":
        return f"it runs on the CPU, and the tensors are on {value.device}"
    if value.dtype not in _DTYPES:
        return f"it takes float32 and bfloat16, got {value.dtype}"
    return None


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    scale: float,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """The messages, and the log-sum-exp of every position's logits, (B, H, W, heads) in float32."""
    problem = _problem(value, offset, kernel_size, dilation)
    query, key, value = (_rows(x) for x in (query, key, value))
    offset, bias = _floats(offset), None if bias is None else _floats(bias)
    out = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    log_sum = torch.empty(value.shape[:4], dtype=torch.float32, device="cpu")
    _call(
        *("dgmn_attention_forward", problem, ctypes.c_float(scale), _map(query), _map(key), _map(value)),
        *(_pointer(x) for x in (offset, bias, out, log_sum)),
    )
    return out, log_sum


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    log_sum: Tensor,
    scale: float,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value, offset and bias, each in the dtype of its input.

    The softmax is computed again. With nine nodes it costs almost nothing, and its weights sum to one despite rounding.
    """
    problem = _problem(value, offset, kernel_size, dilation)
    nodes = (*value.shape[:4], kernel_size**2)
    grad_query = torch.empty(value.shape, dtype=query.dtype, device="cpu")
    grad_key, grad_value = (torch.zeros(value.shape, dtype=torch.float32, device="cpu") for _ in range(2))
    grad_offset = torch.empty(offset.shape, dtype=torch.float32, device="cpu")
    grad_bias, affinity = (torch.empty(nodes, dtype=torch.float32, device="cpu") for _ in range(2))
    maps = [_rows(x) for x in (grad_out, query, key, value)]
    inputs = [_floats(offset), None if bias is None else _floats(bias)]
    grads = (grad_query, grad_key, grad_value, grad_offset, grad_bias, affinity)
    _call(
        *("dgmn_attention_backward", problem, ctypes.c_float(scale)),
        *(_map(x) for x in maps),
        *(_pointer(x) for x in (*inputs, *grads)),
    )
    return (
        grad_query,
        grad_key.to(key.dtype),
        grad_value.to(value.dtype),
        grad_offset.to(offset.dtype),
        None if bias is None else grad_bias.to(bias.dtype),
    )


def aggregate_forward(value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int) -> Tensor:
    problem = _problem(value, offset, kernel_size, dilation)
    value, offset, weight = _rows(value), _floats(offset), _floats(weight)
    out = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    _call("dgmn_aggregate_forward", problem, _map(value), *(_pointer(x) for x in (offset, weight, out)))
    return out


def aggregate_backward(
    grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offset and weight, each in the dtype of its input."""
    problem = _problem(value, offset, kernel_size, dilation)
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device="cpu")
    grad_offset = torch.empty(offset.shape, dtype=torch.float32, device="cpu")
    grad_weight = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    maps = [_rows(x) for x in (grad_out, value)]
    inputs = [_floats(offset), _floats(weight)]
    _call(
        *("dgmn_aggregate_backward", problem, *(_map(x) for x in maps)),
        *(_pointer(x) for x in (*inputs, grad_value, grad_offset, grad_weight)),
    )
    return grad_value.to(value.dtype), grad_offset.to(offset.dtype), grad_weight.to(weight.dtype)


def position_forward(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> Tensor:
    problem = _problem(query)
    query = _rows(query)
    tables = [None if table is None else _floats(table) for table in (rows, columns)]
    scores = torch.empty((*query.shape[:4], nodes), dtype=torch.float32, device="cpu")
    _call(
        "dgmn_position_forward",
        problem,
        ctypes.c_int64(mirrored),
        ctypes.c_int64(nodes),
        _map(query),
        *map(_pointer, (*tables, scores)),
    )
    return scores


def position_backward(
    grad_scores: Tensor, query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if mirrored and rows is not None and query.shape[1] != query.shape[2]:
        # The gradient of the stretched term, back at the mirrored positions.
        turned = _unstretched(grad_scores)
        of_rows, grad_rows, _ = position_backward(turned, query, rows, None, False)
        if columns is None:
            return of_rows, grad_rows, None
        grad_query, _, grad_columns = position_backward(grad_scores, query, None, columns, False)
        return grad_query.add_(of_rows), grad_rows, grad_columns
    problem = _problem(query)
    nodes = grad_scores.shape[-1]
    query, grad_scores = _rows(query), _floats(grad_scores)
    tables = [None if table is None else _floats(table) for table in (rows, columns)]
    grad_query = torch.empty(query.shape, dtype=query.dtype, device="cpu")
    sums = [None if table is None else torch.zeros_like(table) for table in tables]
    _call(
        *("dgmn_position_backward", problem, ctypes.c_int64(mirrored), ctypes.c_int64(nodes)),
        *(_pointer(grad_scores), _map(query)),
        *(_pointer(x) for x in (*tables, grad_query, *sums)),
    )
    grad_rows, grad_columns = (
        None if table is None or total is None else total.to(table.dtype)
        for table, total in zip((rows, columns), sums, strict=True)
    )
    return grad_query, grad_rows, grad_columns


def _unstretched(grad: Tensor) -> Tensor:
    """The gradient of what `reference.stretched` takes, (B, H, W, heads, K)."""
    batch, height, width, heads, nodes = grad.shape
    maps = _floats(grad).flatten(3).permute(0, 3, 1, 2)
    of_maps: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        maps, (height, width), (batch, heads * nodes, width, height), False
    )
    return of_maps.permute(0, 3, 2, 1).reshape(grad.shape)


def gelu_backward(before: Tensor, grad: Tensor, active: Tensor, total: Tensor) -> None:
    """The backward pass of GELU in one pass over memory, for contiguous tensors (N, C) in float32.

    Args:
        before: what GELU took.
        grad: the gradient of what it gave; becomes the gradient of `before`.
        active: becomes what it gave.
        total: (C,); the sum of the gradient of `before` over the rows is added.
    """
    problem = _problem(before[None, None, :, None])
    _call("dgmn_gelu_backward", problem, *map(_pointer, (before, grad, active, total)))


def _problem(value: Tensor, offset: Tensor | None = None, kernel_size: int = 0, dilation: int = 0) -> _Problem:
    batch, height, width, heads, dim = value.shape
    if height * width >= _MAX_POSITIONS:
        raise ValueError(f"the native kernels take maps of fewer than 2**30 positions, got {tuple(value.shape)}")
    offset_heads = 1 if offset is None else offset.shape[3]
    sizes = (batch, height, width, heads, dim, kernel_size, dilation, offset_heads)
    return _Problem(*sizes, value.dtype == torch.bfloat16, torch.get_num_threads(), _target)


def _rows(x: Tensor) -> Tensor:
    """The map with evenly spaced positions and adjacent channels: `x` itself if it has them, otherwise a copy."""
    even = x.shape[1] == 1 or x.stride(1) == x.shape[2] * x.stride(2)
    return x if even and (x.stride(4) == 1 or x.shape[4] == 1) else x.contiguous()


def _floats(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def _map(x: Tensor) -> Any:
    position = x.stride(2) if x.shape[2] > 1 else x.stride(1)
    return ctypes.byref(_Map(x.data_ptr(), x.stride(0), position, x.stride(3)))


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _call(name: str, problem: _Problem, *arguments: Any) -> None:
    status = getattr(LIBRARY, name)(ctypes.byref(problem), *arguments)
    if status == 1:
        raise MemoryError(f"{name}: no memory for the work space")
    if status:
        raise RuntimeError(f"{name} failed with status {status}")

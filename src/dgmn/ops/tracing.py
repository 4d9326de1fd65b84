"""What the code must know about those that trace it: exporters, torch.fx and torch.func."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import statically_known_true

Module = TypeVar("Module", bound=nn.Module)

Form = Literal["grid_sample", "gathers", "kernels", "standard"]
_form: ContextVar[Form | None] = ContextVar("form", default=None)


@contextmanager
def recorded_as(form: Form) -> Iterator[None]:
    """The form that a graph to be exported gives to the primitives.

    Args:
        form: standard operators of ONNX, with its GridSample ("grid_sample", the default for ONNX) or without
            ("gathers"); the kernels as single nodes ("kernels"); or operators of PyTorch alone ("standard").
    """
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def is_recorded_as(*forms: Form) -> bool:
    """Whether [`recorded_as`][dgmn.ops.tracing.recorded_as] says one of these."""
    # torch.compile records in no form, and with PyTorch 2.11 it cannot look into what keeps one.
    return not torch.compiler.is_dynamo_compiling() and _form.get() in forms


def is_exporting() -> bool:
    """Whether a graph is being recorded that will run at other sizes: by torch.export, or by torch.jit.trace."""
    return torch.compiler.is_exporting() or is_jit_tracing()


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace records the code."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def surely_equal(size: int, other: int) -> bool:
    """Whether two sizes are equal. False if a graph is being recorded that leaves them open: to ask would bind it."""
    return not is_jit_tracing() and statically_known_true(size == other)


def is_symbolic(x: object) -> bool:
    """Whether torch.fx.symbolic_trace runs the code: values are then unknown, and so are devices and sizes."""
    return isinstance(x, torch.fx.Proxy)


def is_node_of(module: nn.Module, x: object) -> bool:
    """Whether a value of torch.fx.symbolic_trace stands for a call of this module, which then runs the module's hooks.

    Tracing runs the hooks of an [`opaque`][dgmn.ops.tracing.opaque] module, too; they must not be recorded once more.
    """
    return isinstance(x, torch.fx.Proxy) and (
        x.node.op == "call_module" and x.node.target == x.tracer.path_of_module(module)  # type: ignore[attr-defined]
    )


def opaque(cls: type[Module]) -> type[Module]:
    """Makes a module a single node of every torch.fx graph: no tracer looks into it, whatever its leaf modules are.

    TorchScript, which would have to look into it, is refused.
    """
    forward = cls.forward

    @functools.wraps(forward)
    def traced(self: nn.Module, x: Any, *args: Any) -> Any:
        if not is_symbolic(x):
            return forward(self, x, *args)
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x, *args), {})

    cls.forward = traced
    cls.__prepare_scriptable__ = _no_torchscript  # type: ignore[attr-defined]  # torch.jit.script calls it
    return cls


def _no_torchscript(module: nn.Module) -> NoReturn:
    raise RuntimeError(
        f"dgmn: torch.jit.script does not take {type(module).__name__}: TorchScript is deprecated in PyTorch. "
        "Use torch.export.export, torch.compile or torch.jit.trace"
    )


def is_transformed() -> bool:
    """Whether torch.func transforms the code, for instance torch.func.vmap."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_watched(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a tracer, a compiler, torch.func, or a subclass or another layout of tensors must see every step."""
    if torch.compiler.is_compiling() or is_exporting() or is_transformed():
        return True
    if any(type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided for x in tensors):
        return True
    return has_tangent(tensors)


def is_batched(grad: Tensor) -> bool:
    """Whether a gradient stands for many: `torch.autograd.grad` with `is_grads_batched`, or a vectorized Jacobian."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(grad))


def has_tangent(tensors: Iterable[Tensor | None]) -> bool:
    """Whether forward-mode differentiation goes through one of these."""
    if getattr(forward_ad, "_current_level", 0) < 0:  # it is off; to ask every tensor would take longer
        return False
    unpack: Any = forward_ad.unpack_dual
    return any(x is not None and unpack(x).tangent is not None for x in tensors)


def channels_last(x: Tensor) -> Tensor:
    """Puts a map (B, C, H, W) into channels-last memory, for speed; not under torch.func, where there is none."""
    return x if is_transformed() else x.contiguous(memory_format=torch.channels_last)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more, or something else, than the forward of its class."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    # accelerate puts another forward into the module itself.
    replaced = any(hooks) or "forward" in module.__dict__
    return replaced or torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]


def is_plain(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a call of the module computes what one of the classes does and nothing else, so that others may do it.

    Adapters, parametrisations and quantisation replace the class of a module, and others add hooks.
    """
    return type(module) in classes and not has_hooks(module)

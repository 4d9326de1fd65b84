"""Writes a classifier or segmenter as a package of AOTInductor: machine code that runs with PyTorch alone."""

from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from dgmn.errors import InputError
from dgmn.exporting.comparison import DifferenceError, Run, said
from dgmn.exporting.quiet import quiet
from dgmn.ops.tracing import recorded_as

_SMALLEST = 128  # side of the example: torch.export binds sizes of 1, which small images have in the last stages


def converted(network: nn.Module, example: Tensor, facts: dict[str, str], open_sizes: bool, task: str) -> bytes:
    """The package's content, with these metadata.

    The primitives are written in operators of PyTorch, so that the package needs no dgmn. With our kernels it is no
    faster: what they save, the compiler saves, too.

    Raises:
        DifferenceError: the network binds the sizes of its images.
        InputError: it cannot be compiled.
    """
    height, width = example.shape[-2:]
    if open_sizes:
        # Sides that are equal by chance must not be taken for one.
        height, width = max(height, _SMALLEST), max(width, _SMALLEST) + 32 * (height == width)
    images = torch.nn.functional.interpolate(example, (height, width)).repeat(2, 1, 1, 1)
    axes: dict[int, Any] = {0: Dim.AUTO, **({2: Dim.AUTO, 3: Dim.AUTO} if open_sizes else {})}
    kind = type(network).__name__
    with recorded_as("standard"), quiet():
        try:
            program = torch.export.export(network, (images,), dynamic_shapes=(axes,))
        except Exception as error:  # whatever a network does that torch.export does not trace
            raise InputError(f"model: torch.export does not trace {kind}: {said(error)}") from error
        if any(isinstance(size, int) for size in _sizes(program, axes)):
            if open_sizes:
                raise DifferenceError("torch.export binds its sizes")
            raise InputError(f"model: torch.export binds the batch of {kind}")
        ours = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("dgmn.")}
        if ours:
            raise InputError(f"model: {kind} has operators that PyTorch alone does not know: {', '.join(sorted(ours))}")
        buffer = BytesIO()
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=buffer, inductor_configs={"aot_inductor.metadata": facts}
            )
        except Exception as error:  # of the compiler, or of its compiler for C++
            raise InputError(f"model: AOTInductor does not compile {kind}: {said(error)}") from error
    return buffer.getvalue()


def opened(content: bytes) -> Run:
    """Opens a package that `converted` has made. It holds machine code, which runs."""
    run: Any = torch._inductor.aoti_load_package(BytesIO(content))
    return lambda images: [run(images)]


def _sizes(program: Any, axes: dict[int, Any]) -> list[Any]:
    """The sizes of the program's images that should be open; those that are bound are numbers."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    return [node.meta["val"].shape[axis] for axis in axes]

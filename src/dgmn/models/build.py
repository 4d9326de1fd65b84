"""Networks of a task by name, as recipes and checkpoints have them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from dgmn.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def build_named(
    builders: Mapping[str, Callable[..., Network]],
    model: str,
    backbone: str,
    num_classes: int,
    model_args: dict[str, Any] | None = None,
) -> Network:
    """One of a task's networks.

    Args:
        builders: the task's networks by name; each takes a backbone and a number of classes.
        model: name of one of them.
        backbone: name for `timm.create_model`.
        num_classes: of the data.
        model_args: more arguments for the network.

    Raises:
        InputError (a ValueError): no such network, backbone or argument.
    """
    if model not in builders:
        raise InputError(f"model: no network {model!r}; one of {', '.join(builders)}")
    try:
        return builders[model](backbone, num_classes, **(model_args or {}))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model: {model} cannot be built with {model_args}: {error}") from error

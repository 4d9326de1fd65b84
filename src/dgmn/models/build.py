"""Builds a task's networks by the names that recipes and checkpoints use."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from dgmn.about import Preprocessing
from dgmn.errors import InputError, did_you_mean

Network = TypeVar("Network", bound=nn.Module)


def build_named(
    builders: Mapping[str, Callable[..., Network]],
    model: str,
    backbone: str,
    num_classes: int,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Builds one of a task's networks.

    Args:
        builders: the task's networks by name; each takes a backbone and a number of classes.
        model: name of the network.
        backbone: name for `timm.create_model`.
        num_classes: number of classes in the data.
        model_args: more arguments for the network.
        preprocessing: how images are prepared; None takes what timm knows of the backbone.

    Raises:
        InputError (a ValueError): there is no such network, backbone or argument.
    """
    if model not in builders:
        hint = did_you_mean(model, builders, f"; one of {', '.join(builders)}")
        raise InputError(f"model: no network {model!r}{hint}")
    args = dict(model_args or {})
    if preprocessing is not None:
        args["backbone_args"] = with_preprocessing(args.get("backbone_args"), preprocessing)
    try:
        return builders[model](backbone, num_classes, **args)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model: {model} cannot be built with {model_args}: {error}") from error


def with_preprocessing(args: Mapping[str, Any] | None, preprocessing: Preprocessing) -> dict[str, Any]:
    """Arguments for `timm.create_model` that give its network this preprocessing."""
    given = (args or {}).get("pretrained_cfg_overlay") or {}
    return {**(args or {}), "pretrained_cfg_overlay": {**given, **preprocessing.to_values()}}

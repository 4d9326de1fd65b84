"""Builds a task's networks by the names that recipes and checkpoints use, and notes how a network was built."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import nn

from dgmn.about import Preprocessing
from dgmn.errors import InputError, did_you_mean
from dgmn.weights.description import without_sources

Network = TypeVar("Network", bound=nn.Module)
Arguments = ParamSpec("Arguments")


def noted(builder: Callable[Arguments, Network]) -> Callable[Arguments, Network]:
    """Makes a builder of a task note its arguments in the network, for [`built_as`][dgmn.models.build.built_as]."""
    signature = inspect.signature(builder)

    @wraps(builder)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Network:
        network = builder(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        named = {name: given.pop(name, signature.parameters[name].default) for name in ("backbone", "num_classes")}
        vars(network)["built_as"] = {"model": builder.__name__, **named, "model_args": _without_preprocessing(given)}
        return network

    return build


def built_as(network: nn.Module) -> dict[str, Any] | None:
    """The arguments from which a network can be built again, by their names in checkpoints; None if they are unknown.

    A detector or segmenter has noted them itself. Of a classifier, timm knows them.
    """
    noted = getattr(network, "built_as", None)
    if noted is not None:
        return dict(noted)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    if not (cfg.get("architecture") and getattr(network, "num_classes", 0)):
        return None
    args = {name: value for name, value in getattr(network, "_model_args", {}).items() if name != "num_classes"}
    if "inserted" in vars(network):  # by dgmn.insert
        args["insert"] = network.inserted
    return {"model": cfg["architecture"], "num_classes": network.num_classes, "model_args": without_sources(args)}


def _without_preprocessing(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a builder without the preprocessing, which the network says itself."""
    kept: dict[str, Any] = without_sources(args)
    inner = {key: x for key, x in (kept.pop("backbone_args", None) or {}).items() if key != "pretrained_cfg_overlay"}
    return {**kept, **({"backbone_args": inner} if inner else {})}


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

"""Classifiers by name, as recipes and checkpoints have them: all of timm's."""

from collections.abc import Mapping
from typing import Any, cast

import timm
from torch import nn

from dgmn.about import Preprocessing
from dgmn.errors import InputError
from dgmn.models.build import with_preprocessing
from dgmn.models.features import check_name


def classifier(
    model: str,
    num_classes: int,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> nn.Module:
    """A network of timm.

    Args:
        model: name for `timm.create_model`.
        num_classes: of the data.
        model_args: more arguments for the network.
        preprocessing: of the images; None takes what timm knows of the network.

    Raises:
        InputError (a ValueError): no such network or argument, or fewer than two classes.
    """
    check_name(model, "model.model")
    if num_classes < 2:
        raise InputError(f"model.num_classes must be at least 2, got {num_classes}")
    args = dict(model_args or {})
    if preprocessing is not None:
        args = with_preprocessing(args, preprocessing)
    try:
        return cast(nn.Module, timm.create_model(model, num_classes=num_classes, **args))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"model: {model} cannot be built with {model_args}: {error}") from error

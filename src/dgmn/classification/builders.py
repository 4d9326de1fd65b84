"""Builds classifiers by the names that recipes and checkpoints use: all of timm's."""

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
    """Builds a timm classifier.

    Args:
        model: name for `timm.create_model`.
        num_classes: number of classes in the data.
        model_args: more arguments for the network.
        preprocessing: preprocessing of the images; None takes timm's own for the network.

    Raises:
        InputError (a ValueError): the network or an argument does not exist, or there are fewer than two classes.
    """
    check_name(model, "model.model")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(f"model.num_classes must be at least 2, got {num_classes}")
    args = dict(model_args or {})
    if preprocessing is not None:
        args = with_preprocessing(args, preprocessing)
    try:
        return cast(nn.Module, timm.create_model(model, num_classes=num_classes, **args))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"model: {model} cannot be built with {model_args}: {error}") from error

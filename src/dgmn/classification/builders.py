"""Builds classifiers by the names that recipes and checkpoints use: all of timm's."""

from collections.abc import Mapping
from typing import Any, cast

import timm
from torch import nn

from dgmn.about import Preprocessing
from dgmn.errors import InputError
from dgmn.models.build import with_preprocessing
from dgmn.models.features import check_name
from dgmn.models.insert import insert_all


def check_image_size(network: nn.Module, size: int) -> None:
    """Compares the side of the images with the only one that a network takes, if it takes only one.

    Raises:
        InputError (a ValueError): they differ.
    """
    embed = getattr(network, "patch_embed", None)
    only = getattr(embed, "img_size", None)
    if only is not None and getattr(embed, "strict_img_size", False) and (size, size) != tuple(only):
        raise InputError(
            f"image_size {size}: the network takes {only[0]} x {only[1]} only; give that as image_size, or build it "
            f"for this size with img_size {size} in model_args"
        )


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
        model_args: more arguments for the network; `insert` is for [`insert`][dgmn.models.insert.insert], a dict of its
            arguments or a list of such dicts.
        preprocessing: preprocessing of the images; None takes timm's own for the network.

    Raises:
        InputError (a ValueError): the network or an argument does not exist, or there are fewer than two classes.
    """
    check_name(model, "model.model")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(f"model.num_classes must be at least 2, got {num_classes}")
    args = dict(model_args or {})
    inserted = args.pop("insert", None)
    if preprocessing is not None:
        args = with_preprocessing(args, preprocessing)
    try:
        network = cast(nn.Module, timm.create_model(model, num_classes=num_classes, **args))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"model: {model} cannot be built with {model_args}: {error}") from error
    if inserted is not None:
        insert_all(network, inserted)
    return network

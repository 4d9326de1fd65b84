"""Builds classifiers by the names that recipes and checkpoints use: all of timm's."""

from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from torch import nn

from dgmn.about import Preprocessing
from dgmn.errors import InputError, check_number, first_line
from dgmn.models.build import with_preprocessing
from dgmn.models.features import check_name
from dgmn.models.insert import insert_all


def check_image_size(network: nn.Module, size: int) -> None:
    """Shows an image to a network that timm says is made for one size, since some take others and some do not.

    Raises:
        InputError (a ValueError): the network refuses the image.
    """
    config: Mapping[str, Any] = getattr(network, "pretrained_cfg", {})
    if not config.get("fixed_input_size"):
        return
    first, modes = next(network.parameters()), [(part, part.training) for part in network.modules()]
    channels, *own = config.get("input_size", (3, 224, 224))
    image = torch.zeros((1, channels, size, size), dtype=first.dtype, device=first.device)
    try:
        with torch.no_grad():
            network.eval()(image)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:  # every network has its own way to refuse
        raise InputError(
            f"image_size {size}: the network does not take it ({first_line(error)}); give its own size, as a rule "
            f"{own[0]}, or build it for this size with img_size {size} in model_args, where it has that"
        ) from error
    finally:
        for part, training in modes:  # a frozen norm stays in eval mode, whatever the network's is
            part.training = training


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
    check_number("model.num_classes", num_classes, at_least=2)
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

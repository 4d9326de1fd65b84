"""The detectors by name, as recipes and published models name them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dgmn.detection.mask_rcnn import mask_rcnn
from dgmn.detection.retinanet import retinanet
from dgmn.errors import InputError

BUILDERS: dict[str, Callable[..., nn.Module]] = {"retinanet": retinanet, "mask_rcnn": mask_rcnn}


def build(model: str, backbone: str, num_classes: int, model_args: dict[str, Any] | None = None) -> nn.Module:
    """One of `BUILDERS` by its name.

    Raises:
        InputError (a ValueError): no such network, backbone or argument.
    """
    if model not in BUILDERS:
        raise InputError(f"model: no detector {model!r}; one of {', '.join(BUILDERS)}")
    try:
        return BUILDERS[model](backbone, num_classes, **(model_args or {}))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model: {model} cannot be built with {model_args}: {error}") from error

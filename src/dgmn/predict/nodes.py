"""Pictures of the nodes that a network samples, the same for all tasks."""

import argparse
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from dgmn.errors import InputError
from dgmn.nodes import Point, SampledNodes
from dgmn.visualize import node_picture


class _Predictor(Protocol):
    def nodes(self, image: Image.Image, at: Point, device: torch.device) -> list[SampledNodes]: ...


def write_nodes(
    options: argparse.Namespace,
    number: int,
    path: Path,
    image: Image.Image,
    predictor: _Predictor,
    device: torch.device,
) -> None:
    """A picture for every point that was asked for, or for the middle of the image.

    Raises:
        InputError: a point is not in the image, the network samples no nodes, or there is no such layer.
    """
    for at in options.at or [(image.width / 2, image.height / 2)]:
        try:
            picture = node_picture(image, predictor.nodes(image, at, device), options.layer)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        picture.save(Path(options.nodes) / f"{number:05d}_{path.stem}_{at[0]:g}_{at[1]:g}.png")

"""What predictors of all tasks share: they predict images, and show the nodes that a network samples."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import nn
from typing_extensions import override

from dgmn.errors import InputError, check_number
from dgmn.finite import check_weights
from dgmn.images import AnyImage, Named, to_image
from dgmn.nodes import Point, SampledLayer, SampledNodes, check_point
from dgmn.pictures import heat_sheet, node_picture, node_sheet
from dgmn.video import frames
from dgmn.writers import JsonWriter, ListWriter
from dgmn_base.files import VIDEOS, find_images
from dgmn_base.terminal import counted

_PIXELS = 2**26  # a batch with more pixels gets no further image

OnError = Callable[[AnyImage, Exception], None]
Progress = Callable[[float], None]


class Drawable(ABC):
    """An object that can be drawn; a notebook shows its picture."""

    @abstractmethod
    def draw(self) -> Image.Image:
        """A picture of the object."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()


class Result(Drawable):
    """What a network found in an image; `print` describes it in words.

    Args:
        source: the image as it was given.
        image: the image in RGB, upright.
    """

    def __init__(self, source: AnyImage, image: Image.Image) -> None:
        self.source = source
        self.image = image

    @property
    def name(self) -> str:
        """The image's path, or "image" if it was not given as a path; of a frame, the video's and its number."""
        if isinstance(self.source, Named):
            return self.source.name
        return os.fspath(self.source) if isinstance(self.source, str | os.PathLike) else "image"

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def cells(self) -> tuple[str, ...]:
        """The result's row in a table with the predictor's `columns`."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON."""

    @abstractmethod
    @override
    def draw(self, inside: bool = False) -> Image.Image:
        """A picture of the image with what was found in it.

        Args:
            inside: keep the image's size, as a video needs it: words that would stand below the image stand in its
                corner.
        """

    def head(self) -> dict[str, Any]:
        """The beginning of `to_dict`: the image's name, and what else is known of it."""
        return {"image": self.name, **(self.source.facts if isinstance(self.source, Named) else {})}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}: {str(self).splitlines()[0]}>"


@dataclass(frozen=True, eq=False)
class Nodes(Drawable, Sequence[SampledNodes]):
    """The nodes that a network samples for a point of an image, in the order in which its layers run.

    Attributes:
        image: the image in RGB, upright.
        maps: what every layer samples, with each of its sampling rates or heads, at all positions.
        at: the point, in pixels of the image.
    """

    image: Image.Image
    maps: tuple[SampledLayer, ...]
    at: Point

    def __str__(self) -> str:
        every = counted(len(self.layers), "layer")
        layers = f"{every}, {self.layers[0]} to {self.layers[-1]}" if self.maps else "no layer"
        return f"the nodes of ({self.at[0]:g}, {self.at[1]:g}) in {layers}; draw() shows them, [0] is the first map's"

    __repr__ = __str__

    @cached_property
    def found(self) -> tuple[SampledNodes, ...]:
        """One entry for every layer and each of its sampling rates or heads."""
        return tuple(layer.at(self.at) for layer in self.maps)

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that sample nodes."""
        return tuple(dict.fromkeys(layer.layer for layer in self.maps))

    def select(self, layers: str | None) -> tuple[str, ...]:
        """The names of some layers.

        Args:
            layers: the name of a layer, or of a stage, as in the network ("stages.2") or in metrics ("stage3"); None:
                the last layer; "all": all; "stages": the last layer of every stage.

        Raises:
            InputError (a ValueError): there is no such layer.
        """
        stages = {layer.layer: layer.stage for layer in self.maps}
        if layers is None:
            return self.layers[-1:]
        if layers == "all":
            return self.layers
        if layers == "stages":
            return tuple({stage: name for name, stage in stages.items()}.values())
        named = [each.layer for each in self.maps if layers in (each.layer, each.stage, each.metric)]
        chosen = tuple(dict.fromkeys(named))
        if not chosen:
            known = ", ".join(dict.fromkeys((*self.layers, *(each.metric for each in self.maps), "all", "stages")))
            raise InputError(f"layer must be one of {known}; got {layers!r}")
        return chosen

    def draw(self, layer: str | None = None, arrows: bool = False, density: bool = False) -> Image.Image:
        """A picture of the nodes.

        Args:
            layer: the layers, as for `select`. One layer without arrows is drawn with
                [`node_picture`][dgmn.pictures.node_picture], others with [`node_sheet`][dgmn.pictures.node_sheet].
            arrows: draw the walks as arrows.
            density: draw where all positions look instead, with [`heat_sheet`][dgmn.pictures.heat_sheet].

        Raises:
            InputError (a ValueError): there is no such layer.
        """
        names = self.select(layer)
        if density:
            return heat_sheet(self.image, [each for each in self.maps if each.layer in names])
        if len(names) == 1 and not arrows:
            return node_picture(self.image, self.found, names[0])
        return node_sheet(self.image, [each for each in self.found if each.layer in names], arrows=arrows)


class Predictor(ABC):
    """A network and everything that it needs to predict images.

    Args:
        network: the network; it is put into evaluation mode.
        names: the class names, in the order of the network's outputs.
        device: the device to compute on.

    Raises:
        InputError (a ValueError): the weights hold NaN.

    Attributes:
        task: "classification", "detection" or "segmentation".
        network: the network, in evaluation mode.
        names: the class names, in the order of the network's outputs.
        device: the device to compute on.
    """

    task: ClassVar[str]
    batch_size: ClassVar[int] = 1
    """Default number of images that the network gets at a time."""

    def __init__(self, network: nn.Module, names: Sequence[str], device: str | torch.device = "cpu") -> None:
        check_weights(network.state_dict(), type(network).__name__)
        self.network = network.eval().to(device)
        self.names = tuple(names)
        self.device = torch.device(device)

    @classmethod
    @abstractmethod
    def from_description(
        cls, description: Mapping[str, Any], device: str | torch.device = "cpu", network: nn.Module | None = None
    ) -> Self:
        """Builds the predictor that a run's checkpoint describes; the weights are not loaded yet.

        Args:
            description: what the checkpoint says.
            device: the device to compute on.
            network: what computes in the place of the described network.
        """

    @classmethod
    @abstractmethod
    def published(cls, builder: str, backbone: str, device: str | torch.device = "cpu") -> Self:
        """Builds the predictor of a published model, named as in the zoo; the weights are not loaded yet."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What prediction needs beside the network, as plain values, by their names in a run's checkpoint."""

    @abstractmethod
    def predict(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """Predicts one image or many.

        Args:
            images: one image: a path, the bytes of a file, a PIL image, an array (H, W, 3) of uint8 in RGB, or a tensor
                (3, H, W) of uint8 or in 0..1. Or many: a list or an iterator of these, a folder, a glob, or a video.
            batch_size: images that the network gets at a time; None: the task's default.
            on_error: called with an image that cannot be read, and the error; the image is then left out. None: the
                error is raised.
            progress: called with the number of images that are done.
            options: further options; see the predictor of the task.

        Returns:
            The result of one image. For many images, an iterator of results, which reads each image at its turn.

        Raises:
            InputError (a ValueError): an image cannot be read, or an option is wrong; the message names it.
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def columns(self, cells: int) -> tuple[str, ...]:
        """The header of a table of results with this many cells, without the image's column."""

    @abstractmethod
    def sample_layers(self, image: Image.Image, at: Point) -> list[SampledLayer]:
        """What the network samples at all positions of the part of the image that it gets for a point in it."""

    def part(self, image: Image.Image, at: Point) -> Hashable:
        """What tells the part of the image that the network gets for a point from others; None if it gets it whole."""
        return None

    def writer(self, file: Path) -> JsonWriter:
        """A writer that adds results to a JSON file one by one."""
        return ListWriter(file)

    def nodes(self, image: AnyImage, at: Point | None = None) -> Nodes:
        """The nodes that the network samples for a point of an image (Fig. 5 of the paper).

        See [`sampled_nodes`][dgmn.nodes.sampled_nodes].

        Args:
            image: one image, as for `predict`.
            at: x and y in pixels of the image; None: its middle.

        Raises:
            InputError (a ValueError): the point is not in the image, or the network samples no nodes.
        """
        picture = to_image(image)
        if at is None:
            at = (picture.width / 2, picture.height / 2)
        check_point(at, 0, 0, picture.width, picture.height)
        with _no_default_device():
            layers = self.sample_layers(picture, at)
        return Nodes(picture, tuple(layers), at)

    def __repr__(self) -> str:
        classes = counted(len(self.names), "class")
        return f"<{type(self).__name__}: {type(self.network).__name__}, {classes}, on {self.device}>"


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from JSON, which knows no tuples, for the fields of a frozen dataclass."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _no_default_device() -> AbstractContextManager[object]:
    """Undoes `torch.set_default_device` meanwhile: images are read on the CPU and put where the network is."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


Predict = Callable[[Sequence[tuple[AnyImage, Image.Image]], Progress], Sequence[Result]]
"""Predicts a batch of images, each as it was given and in RGB; calls back with the share that is done."""


def run(
    predict: Predict,
    images: Any,
    batch_size: int | None,
    default: int,
    on_error: OnError | None = None,
    progress: Progress | None = None,
) -> Any:
    """The loop behind every [`Predictor.predict`][dgmn.predictor.Predictor.predict]; `default` is the task's batch."""
    batch_size = default if batch_size is None else batch_size
    check_number("batch_size", batch_size)
    many = _many(images)
    if many is not None:
        return _results(predict, many, batch_size, on_error, progress)
    (result,) = _results(predict, [images], 1, None, progress)
    return result


def _results(
    predict: Predict, images: Iterable[AnyImage], batch_size: int, on_error: OnError | None, progress: Progress | None
) -> Iterator[Result]:
    tell = progress or (lambda done: None)
    done = 0  # images that were read and predicted, or left out
    batch: list[tuple[AnyImage, Image.Image]] = []

    def predicted() -> Sequence[Result]:
        with torch.inference_mode(), _no_default_device():
            return predict(batch, lambda share: tell(done + share * len(batch)))

    failures: list[Exception] = []
    for source in _until_failure(images, failures):
        try:
            batch.append((source, to_image(source)))
        except (InputError, OSError) as error:
            if on_error is None:
                failures.append(error)
                break
            on_error(source, error)
            done += 1
        if len(batch) == batch_size or sum(image.width * image.height for _, image in batch) > _PIXELS:
            yield from predicted()
            done += len(batch)
            batch.clear()
            tell(done)
    if batch:
        yield from predicted()
    if failures:  # what came before is predicted
        raise failures[0]
    tell(done + len(batch))


def _until_failure(images: Iterable[AnyImage], failures: list[Exception]) -> Iterator[AnyImage]:
    """The images; the error that ends them, if any, is kept."""
    try:
        yield from images
    except Exception as error:
        failures.append(error)


def _many(images: Any) -> Iterable[AnyImage] | None:
    """The given images; None if only one was given."""
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        # Unlike Path's methods, these of os.path take what is no path, such as names that are too long.
        is_glob = not os.path.exists(path) and any(character in str(images) for character in "*?[")
        if path.suffix.lower() in VIDEOS and os.path.isfile(path):
            return frames(path)
        return find_images([images]) if os.path.isdir(images) or is_glob else None
    # An open file is an iterator, too, of lines.
    return images if isinstance(images, list | tuple | Iterator) and not hasattr(images, "read") else None

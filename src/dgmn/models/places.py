"""Where modules can stand in a network: its layers, and the shapes of their maps."""

import copy
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from dgmn.about import about, unwrapped
from dgmn.errors import InputError, check_number, first_line
from dgmn.models.node_attention import attention_blocks, map_size
from dgmn_base.terminal import format_table

Size = tuple[int, int]
Layout = Literal["NCHW", "NHWC"]

ATTENTION = "dgmn2_attention"
"""The module that takes the place of an attention instead of standing behind a layer."""


@dataclass(frozen=True)
class Place:
    """A layer that a module can stand behind, or an attention whose place it can take.

    Attributes:
        name: name of the layer in the network.
        kind: class of the layer.
        channels: channels of its map.
        stride: pixels of the image between two positions of its map.
        layout: "NCHW" for channels first, "NHWC" for channels last.
    """

    name: str
    kind: str
    channels: int
    stride: int
    layout: Layout


class Places(tuple[Place, ...]):
    """The places of a network, in its order; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return format_table(("place", "class", "channels", "stride", "layout"), [astuple(place) for place in self])

    __repr__ = __str__


def places(network: nn.Module, module: str = "dgmn", *, size: Size | None = None) -> Places:
    """Where in a network [`insert`][dgmn.models.insert.insert] can put a module.

        print(dgmn.places(timm.create_model("resnet18")))

    A copy of the network runs on the meta device, where shapes are computed and no numbers.

    Args:
        network: see `insert`.
        module: "dgmn2_attention" lists the attentions that it can replace. For all others the places are the same:
            layers that run once and give a map of 4 dimensions, but no batch norms.
        size: see `insert`.

    Raises:
        InputError (a ValueError): the network does not run on an image of this size.
    """
    inner = named(network)
    found = Shapes(network).attentions(size) if module == ATTENTION else Shapes(network).maps(size)
    inserted = about(inner).added
    return Places(x for x in found.values() if isinstance(x, Place) and not f"{x.name}.".startswith(inserted))


def named(network: Any) -> nn.Module:
    """The network whose layers have the names that users know: the one in timm's feature extractor.

    Raises:
        InputError: it is no network.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    inner: nn.Module = unwrapped(network)[0]
    return inner


def last_layer(layer: nn.Module) -> nn.Module:
    """The layer that gives the output: what stands behind a sequence cannot be its child, which it would run itself."""
    while isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward and len(layer):
        layer = layer[-1]
    return layer


@dataclass
class _Run:
    """What a layer got and gave while the network ran."""

    calls: int = 0
    inputs: tuple[Any, ...] = ()
    output: Any = None


class Shapes:
    """The maps of a network. It runs once for every size and kind of place, however many modules are inserted."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.sizes: dict[str, Size] = {}  # height and width of the maps of attentions
        self._known: dict[tuple[str, Size | None], dict[str, Place | str]] = {}

    def maps(self, size: Any) -> dict[str, Place | str]:
        """Of every layer the place behind it, or why it is none, by name."""
        size = _checked(size)
        if ("maps", size) not in self._known:
            nominal, fixed = _nominal(self.network)
            # An image that is not square tells channels from height and width; one of whole strides gives them exactly.
            whole = -(-nominal[0] // 64) * 64
            image = size or (nominal if fixed else (whole, whole * 3 // 2))
            try:
                runs = _ran(self.network, image)
            except InputError:
                if image in (size, nominal):
                    raise
                image, fixed = nominal, True
                runs = _ran(self.network, image)
            exact = fixed and size is None
            layers = named(self.network).named_modules()
            self._known["maps", size] = {name: _place(name, x, runs[name], image, exact) for name, x in layers if name}
        return self._known["maps", size]

    def attentions(self, size: Any) -> dict[str, Place | str]:
        """Of every layer the attention that can be replaced, or why it is none, by name."""
        size = _checked(size)
        if ("attentions", size) not in self._known:
            image = size or _nominal(self.network)[0]
            runs, found = _ran(self.network, image), self._known.setdefault(("attentions", size), {})
            blocks = dict(attention_blocks(named(self.network)))
            for name, layer in named(self.network).named_modules():
                kind = type(layer).__name__
                found[name] = (
                    f"is a {kind}, and {ATTENTION} replaces the attention of timm's Swin (version 1) and PVTv2"
                )
                inputs = runs[name.rpartition(".")[0]].inputs
                if name in blocks and inputs:
                    self.sizes[name] = map_size(inputs)
                    stride = round(image[0] / self.sizes[name][0])
                    found[name] = Place(name, kind, cast(Any, layer).dim, stride, "NHWC")
        return self._known["attentions", size]


def _checked(size: Any) -> Size | None:
    if size is None:
        return None
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise InputError(f"size must be the height and width of an image, got {size!r}")
    for side in size:
        check_number("size", side)
    return size[0], size[1]


def _nominal(network: nn.Module) -> tuple[Size, bool]:
    """Height and width of the image that a network is made for, and whether it takes no other."""
    config = get_model_input_config(named(network))
    return (config["input_size"][1], config["input_size"][2]), config["fixed_input_size"]


def _ran(network: nn.Module, image: Size) -> dict[str, _Run]:
    """Runs a copy of a network whose weights have shapes and no numbers, and tells what every layer got and gave.

    Raises:
        InputError: the network takes no such image.
    """
    weights: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in network.parameters()}
    buffers = {id(b): b.detach().to("meta") for b in network.buffers()}
    twin = copy.deepcopy(network, {**weights, **buffers}).eval()
    runs: dict[str, _Run] = {}

    def watch(run: _Run, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        run.calls, run.inputs, run.output = run.calls + 1, inputs, output

    for name, layer in named(twin).named_modules():
        runs[name] = _Run()
        layer.register_forward_hook(partial(watch, runs[name]))
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    channels = get_model_input_config(named(network))["input_size"][0]
    try:
        with torch.no_grad(), torch.device("meta"):
            (about(twin).products or twin)(torch.empty((1, channels, *image), dtype=dtype))
    except Exception as error:  # every network has its own way to refuse an image
        raise InputError(
            f"network: this {type(named(network)).__name__} does not run on {image[0]} x {image[1]} pixels "
            f"({first_line(error)}); "
            "give the height and width of an image that it takes as size"
        ) from error
    return runs


def _place(name: str, layer: nn.Module, run: _Run, image: Size, exact: bool) -> Place | str:
    """The place behind a layer, or why no module can stand there.

    On a square image the affinities of all pairs of tokens look like a map of N x N positions. Where `exact`, only
    maps whose sides divide the image count, which leaves most of these out.
    """
    kind = type(layer).__name__
    if isinstance(last_layer(layer), nn.Sequential | nn.ModuleDict | nn.ModuleList):
        return f"is a {kind}, which only holds layers: name one of these"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return f"is a {kind}, which synchronised or frozen norms replace: name a layer in front of it or behind it"
    if run.calls != 1:
        return f"runs {run.calls} times" if run.calls else "does not run"
    if not isinstance(run.output, Tensor):
        return f"gives a {type(run.output).__name__}, no map of 4 dimensions"
    shape = tuple(run.output.shape)
    if len(shape) != 4 or shape[0] != 1:  # windows of a map come as several images
        return f"gives {shape}, no map of 4 dimensions"
    first, last = _mismatch(shape[2:], image, exact), _mismatch(shape[1:3], image, exact)
    if min(first, last) > _ROUNDING:
        return f"gives {shape}, no map of the image of {image[0]} x {image[1]} pixels"
    if first <= last:
        return Place(name, kind, shape[1], round(image[0] / shape[2]), "NCHW")
    return Place(name, kind, shape[3], round(image[0] / shape[1]), "NHWC")


_ROUNDING = 0.2  # the most that strides along height and width differ, as a logarithm, on maps of a few positions


def _mismatch(sides: Sequence[int], image: Size, exact: bool) -> float:
    """How much the strides along height and width differ; infinite for what is no map, and for a single position."""
    height, width = sides
    if height * width <= 1 or height > image[0] or (exact and (image[0] % height or image[1] % width)):
        return math.inf
    return abs(math.log(image[0] * width / (image[1] * height)))

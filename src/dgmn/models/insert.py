"""Puts DGMN, or a module that it is compared with, behind layers of any network."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from dgmn.errors import InputError, did_you_mean
from dgmn.layers import context_module
from dgmn.models.node_attention import attention_blocks, node_attention, put_attention
from dgmn.models.places import ATTENTION, Layout, Place, Shapes, Size, last_layer, named
from dgmn.ops.tracing import is_node_of, is_symbolic

Network = TypeVar("Network", bound=nn.Module)


def insert(
    network: Network,
    places: str | Sequence[str],
    module: str = "dgmn",
    *,
    gate: float | None = None,
    size: Size | None = None,
    **arguments: Any,
) -> Network:
    """Puts a module behind layers of a network, in place: what follows a layer gets the module's output.

        dgmn.insert(timm.create_model("resnet50", pretrained=True), "layer4.*.act2", gate=0.0)
        dgmn.insert(timm.create_model("convnext_tiny"), "stages.3.blocks.*.conv_dw", "non_local")

    All other weights keep their names, so the weights of the plain network load; the modules then start anew. A module
    is the child `module` of its layer.

    "dgmn2_attention" stands behind nothing: it takes the place of the attention of timm's Swin or PVTv2, for instance
    `"layers.2.blocks.*.attn"`, and keeps its weights of query, key, value and projection.

    Args:
        network: any network of timm or torchvision that takes a batch of images, whole or with `features_only`. A
            detector or segmenter of dgmn takes it from its builder: `backbone_args={"insert": {"places": ...}}`.
        places: the name of a layer, or a glob, or a list of these. `*` stands for a part between two dots, or some of
            its letters. [`places`][dgmn.models.places.places] lists the layers.
        module: one of `dgmn.layers.context.MODULES`, for instance "dgmn", "non_local"; or "dgmn2_attention".
        gate: what the module changes is multiplied with a learned number that starts with this. At 0 the network
            starts unchanged: the first step moves only the gate, the next ones the module, too. None: no gate, for
            instance because the module starts as the identity by itself.
        size: height and width of an image that the network takes, from which the sizes of its maps are learned. None:
            what timm says of the network, or 224.
        **arguments: more arguments for the module, for instance `sampling_rates=(1, 4, 8)`.

    Returns:
        The network.

    Raises:
        InputError (a ValueError): no place has such a name, or a module cannot stand there; there is no such module, or
            it does not take the arguments. The network is unchanged then.
    """
    options = {name: value for name, value in {"gate": gate, "size": size}.items() if value is not None}
    insert_all(network, {"places": places, "module": module, **options, **arguments})
    return network


def insert_all(network: nn.Module, insertions: Any) -> None:
    """Puts modules into a network as recipes and checkpoints say, and notes it in the network.

    Args:
        network: see [`insert`][dgmn.models.insert.insert].
        insertions: the arguments of `insert` as a dict, or a list of such dicts.

    Raises:
        InputError (a ValueError): as for `insert`, or these are no arguments.
    """
    inner = named(network)
    if "built_as" in vars(network):
        raise InputError(
            f"network: a {type(network).__name__} gets modules from its builder, as "
            'backbone_args={"insert": {"places": ...}}, so that its checkpoints say it'
        )
    shapes = Shapes(network)
    for one in insertions if isinstance(insertions, list | tuple) else [insertions]:
        if not isinstance(one, Mapping) or "places" not in one or not all(isinstance(name, str) for name in one):
            wanted = 'a dict such as {"places": "layer4.*.act2", "module": "dgmn"}, or a list of these'
            raise InputError(f"insert: got {one!r}; accepted {wanted}")
        _insert(inner, shapes, **one)
        noted = {name: list(value) if isinstance(value, tuple) else value for name, value in one.items()}
        vars(network).setdefault("inserted", []).append(noted)


def _insert(
    network: nn.Module,
    shapes: Shapes,
    /,
    places: str | Sequence[str],
    module: str = "dgmn",
    gate: float | None = None,
    size: Size | None = None,
    **arguments: Any,
) -> None:
    if gate is not None and (type(gate) not in (int, float) or not math.isfinite(gate)):
        raise InputError(f"gate must be a finite number, or None for no gate, got {gate!r}")
    if module == ATTENTION:
        if gate is not None:
            raise InputError(f"gate: {ATTENTION} takes the place of another attention and has none, got {gate!r}")
        blocks = dict(attention_blocks(network))
        if not blocks:
            raise InputError(
                f"module: {ATTENTION} takes over the weights of the attention of timm's Swin (version 1) or PVTv2, and "
                f"this {type(network).__name__} has none, or none any more; Swin V2 compares by cosines, with other "
                'weights. Every other module, such as "dgmn", can stand behind the layers that dgmn.places lists'
            )
        chosen = _chosen(places, shapes.attentions(size), network)
        for name in chosen.keys() - blocks.keys():
            raise InputError(f"places: {name} is replaced already")
        new = {name: node_attention(blocks[name], shapes.sizes[name], arguments) for name in chosen}
        for name, attention in new.items():
            put_attention(blocks[name], attention)
        return
    added: dict[nn.Module, tuple[nn.Module, Layout]] = {}
    for place in _chosen(places, shapes.maps(size), network).values():
        layer = last_layer(network.get_submodule(place.name))
        if hasattr(layer, "module"):
            raise InputError(f"places: {place.name} has a module behind it already")
        if layer not in added:
            added[layer] = _built(module, place, arguments, gate), place.layout
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    for layer, (built, layout) in added.items():
        put_behind(layer, built, gate, layout)
        built.to(like).train(network.training)


def _built(module: str, place: Place, arguments: Mapping[str, Any], gate: float | None) -> nn.Module:
    try:
        built = context_module(module, place.channels, arguments)
    except InputError as error:
        raise InputError(f"{error} (behind {place.name})") from error
    if gate == 0 and _is_identity(built, place.channels):
        raise InputError(
            f"gate: {module} starts as the identity by itself, and with a gate of 0 neither would ever learn: "
            "leave the gate out"
        )
    return built


def _is_identity(module: nn.Module, channels: int) -> bool:
    """Whether a module gives what it gets, on a map that has passed a ReLU; on the meta device nobody knows."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return False
    x = torch.rand((1, channels, 4, 4), generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    with torch.no_grad():
        return torch.equal(module.eval()(x), x)


def put_behind(layer: nn.Module, module: nn.Module, gate: float | None = None, layout: Layout = "NCHW") -> None:
    """Puts a module behind a layer, as the layer's child `module`: the names of all other weights stay.

    Args:
        layer: a layer that gives a map and runs once.
        module: from (B, C, H, W) to the same shape.
        gate: see [`insert`][dgmn.models.insert.insert].
        layout: of the layer's map.
    """
    if gate is not None:
        module.register_parameter("inserted_gate", nn.Parameter(torch.full((1,), float(gate))))
    module.register_forward_hook(_fresh if gate is None else _gated)
    vars(module)["adds"] = _everything
    layer.add_module("module", module)
    # Hooks, because a wrapper in the layer's place would rename the layer's weights. This one runs before those with
    # which others collect the layer's output.
    layer.register_forward_hook(partial(_behind, layout=layout), prepend=True)


def _everything() -> tuple[str, ...]:
    """What a module behind a layer adds to a plain network; see [`Adds`][dgmn.about.Adds]."""
    return ("",)


def _behind(layer: nn.Module, _: tuple[Any, ...], output: Tensor, layout: Layout) -> Tensor:
    if is_node_of(layer, output):
        return output
    module = cast(nn.Module, layer.module)
    if layout == "NCHW":
        return cast(Tensor, module(output))
    out: Tensor = module(output.permute(0, 3, 1, 2))
    # In memory it lies as the layer's own output: what follows may view it, and rounds otherwise for other strides.
    if is_symbolic(output) or output.is_contiguous():
        return out.permute(0, 2, 3, 1).contiguous()
    return out.contiguous().permute(0, 2, 3, 1)


def _gated(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if is_node_of(module, output):
        return output
    x = inputs[0]
    return x + cast(Tensor, module.inserted_gate) * (output - x)


def _fresh(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A copy for what follows: activations may work in place, and the module's backward pass may need its output."""
    return output.clone() if torch.is_grad_enabled() else output


def _chosen(patterns: Any, known: Mapping[str, Place | str], network: nn.Module) -> dict[str, Place]:
    """The places that patterns name. `known` says of every layer which place it is, or why it is none."""
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, list | tuple) or not given or not all(isinstance(each, str) for each in given):
        raise InputError(f"places must be the name of a layer, or a glob, or a list of these, got {patterns!r}")
    chosen: dict[str, Place] = {}
    for pattern in given:
        matching = {name: place for name, place in known.items() if _matches(pattern, name)}
        if not matching:
            good = [name for name, place in known.items() if isinstance(place, Place)]
            some = f"; for instance {', '.join(good[-3:])}" if good else "; it has no place for such a module"
            kind = type(network).__name__
            raise InputError(f"places: {pattern!r} names no layer of this {kind}{did_you_mean(pattern, good, some)}")
        for name, place in matching.items():
            if isinstance(place, str):
                raise InputError(f"places: {pattern!r} names {name}, where no such module can stand: it {place}")
            chosen[name] = place
    return chosen


def _matches(pattern: str, name: str) -> bool:
    parts, names = pattern.split("."), name.split(".")
    return len(parts) == len(names) and all(map(fnmatchcase, names, parts))

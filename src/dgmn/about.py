"""What a network says about itself. Other code asks here instead of comparing names of networks.

A network of ours has a method `about()`. For timm's networks the answer comes from what timm knows of them. A module
inside a network that replaces a plainer one has a method `adds()`, and `lacks()` if the plainer one has weights that it
has not.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How an image is prepared for a network. It belongs to the weights: they were trained with it.

    Attributes:
        mean: mean of every channel, for values in 0..1.
        std: standard deviation of every channel, for values in 0..1.
        interpolation: how an image is resized, by timm's names.
        crop_pct: share of the resized image that a classifier's centre crop keeps.
        crop_mode: how a classifier's crop is made, by timm's names.
    """

    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Reads timm's `pretrained_cfg` or a checkpoint's values; values that are absent keep their defaults."""
        given = {name: values[name] for name in asdict(cls()) if values.get(name) is not None}
        for name in ("mean", "std"):
            if name in given:
                given[name] = tuple(float(number) for number in given[name])
        return cls(**given)

    def to_values(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; timm takes them as `pretrained_cfg_overlay`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Renamed:
    """Weights of a published file under the names of our network.

    Attributes:
        state_dict: name to tensor.
        origin: what the file holds, for messages.
        elsewhere: names in the file that do not belong to this network.
    """

    state_dict: dict[str, Tensor]
    origin: str
    elsewhere: tuple[str, ...] = ()


Official = Callable[[Weights], Renamed | None]


@dataclass(frozen=True)
class About:
    """What a network says about itself.

    Attributes:
        preprocessing: how its images are prepared. A network with a backbone has the backbone's.
        images: what it takes. "batch" is (B, 3, H, W), preprocessed. "list" is a list of images (3, H, W) in 0..1, of
            any sizes, which the network resizes and normalises itself.
        multiple: the sides of an image must be multiples of this; 1 for a network that takes any size.
        masks: whether it finds masks as well as boxes.
        classifier: prefixes of the names of the weights that belong to the classes of the data.
        backbone: name of its backbone, a part that other networks share; "" for a network that is a backbone.
        added: prefixes of names that a plain network of this kind lacks. Weights without them fill everything else.
            The modules in the network report these names, not the network.
        optional: prefixes of names of parts that it may have been built without, and of weights of a plain network
            that modules in it lack.
        undecayed: names of weights without weight decay, as patterns.
        official: gives the weights of a published file under the names of this network; None for another file.
        products: runs all multiplications on a batch, for a network whose call does more than that.
    """

    preprocessing: Preprocessing = Preprocessing()
    images: Literal["batch", "list"] = "batch"
    multiple: int = 32
    masks: bool = False
    classifier: tuple[str, ...] = ()
    backbone: str = ""
    added: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()
    official: Official | None = None
    products: Callable[[Tensor], object] | None = None


@runtime_checkable
class SpeaksForItself(Protocol):
    """A network that says what it is."""

    def about(self) -> About: ...


@runtime_checkable
class Adds(Protocol):
    """A module that has more weights than the plain module that it replaces."""

    def adds(self) -> tuple[str, ...]:
        """Prefixes of the names of the added weights."""
        ...


@runtime_checkable
class Lacks(Protocol):
    """A module that lacks weights of the plain module that it replaces."""

    def lacks(self) -> tuple[str, ...]:
        """Prefixes of the names of these weights."""
        ...


def about(network: nn.Module) -> About:
    """What a network says about itself. All names are names of its own weights, or of a plain network's."""
    added: list[str] = []
    lacking: list[str] = []
    for name, module in network.named_modules():
        inside = f"{name}.".removeprefix(".")
        if isinstance(module, Adds):
            added += [inside + beginning for beginning in module.adds()]
        if isinstance(module, Lacks):
            lacking += [inside + beginning for beginning in module.lacks()]
    word = _word(network)
    return replace(word, added=tuple(added), optional=(*word.optional, *lacking))


def _word(network: nn.Module) -> About:
    inner, prefix = unwrapped(network)
    own = inner.about() if isinstance(inner, SpeaksForItself) else about_timm(inner)
    if own.backbone:
        backbone = _within(own.backbone + ".", _word(inner.get_submodule(own.backbone)))
        own = replace(
            own,
            preprocessing=backbone.preprocessing,
            multiple=backbone.multiple,
            undecayed=own.undecayed + backbone.undecayed,
            official=_first_of(own.official, backbone.official),
        )
    return _within(prefix, own) if prefix else own


def about_timm(network: Any) -> About:
    """What timm knows of one of its networks."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    classifier = cfg.get("classifier")
    if classifier is None and cfg.get("architecture"):  # timm drops it for feature extractors
        classifier = getattr(get_pretrained_cfg(cfg["architecture"], allow_unregistered=True), "classifier", None)
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    features = getattr(network, "feature_info", ())
    stages = tuple(info["module"] for info in getattr(features, "info", features))
    undecayed = getattr(network, "no_weight_decay", None)
    return About(
        preprocessing=Preprocessing.from_values(cfg),
        classifier=_parts(classifier),
        optional=_parts((*classifier, *stages)),
        undecayed=tuple(sorted(undecayed())) if callable(undecayed) else (),
    )


def unwrapped(network: nn.Module) -> tuple[Any, str]:
    """The network in timm's feature extractor, and the prefix of its names there; another network as it is, and ""."""
    return (network.model, "model.") if isinstance(network, FeatureGetterNet) else (network, "")


def _parts(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _within(prefix: str, word: About) -> About:
    """What a part says about itself, under the names that its weights have in the whole network."""

    def names(beginnings: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(prefix + name for name in beginnings)

    official = word.official

    def renamed(state_dict: Weights) -> Renamed | None:
        found = None if official is None else official(state_dict)
        if found is None:
            return None
        return replace(found, state_dict={prefix + name: tensor for name, tensor in found.state_dict.items()})

    return replace(
        word,
        classifier=names(word.classifier),
        optional=names(word.optional),
        undecayed=names(word.undecayed),
        official=renamed,
    )


def _first_of(*official: Official | None) -> Official:
    """Combines readers of published files; the first that knows a file counts."""

    def renamed(state_dict: Weights) -> Renamed | None:
        results = (known(state_dict) for known in official if known is not None)
        return next((result for result in results if result is not None), None)

    return renamed

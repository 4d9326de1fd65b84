"""What a network says of itself: everything else asks it here, and compares no names.

A network of ours has a method `about()`; for timm's networks, what timm itself knows of them is taken. A module inside
of a network that stands for a plainer one has a method `adds()`.
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
    """What becomes of an image before a network sees it. It belongs to the weights: they were trained with it.

    Attributes:
        mean, std: of the channels, for values in 0..1.
        interpolation: of a resized image, by timm's names.
        crop_pct: share of the resized image that the centre crop of a classifier keeps.
        crop_mode: how a classifier's crop is made, by timm's names.
    """

    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """From timm's `pretrained_cfg`, or what a checkpoint holds; ImageNet's where it says nothing."""
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
        elsewhere: names of the file that belong to other parts.
    """

    state_dict: dict[str, Tensor]
    origin: str
    elsewhere: tuple[str, ...] = ()


Official = Callable[[Weights], Renamed | None]


@dataclass(frozen=True)
class About:
    """A network's own word.

    Attributes:
        preprocessing: of its images; of a network with a backbone, the backbone's.
        images: what it takes: a "batch" (B, 3, H, W), preprocessed, or a "list" of images (3, H, W) in 0..1, of any
            sizes, which it resizes and normalises itself.
        multiple: of what the sides of an image must be multiples; 1 for a network that takes any.
        masks: whether it finds masks beside boxes.
        classifier: beginnings of the names of the weights that belong to the classes of the data.
        backbone: name of the part that other networks have, too; "" for a network that is one.
        added: beginnings of names that a plain network of this kind lacks: weights without them fill all others. Its
            modules say it, not the network.
        optional: beginnings of names of parts that it may have been built without.
        undecayed: names of weights that are spared by weight decay, as patterns.
        official: gives the weights of a published file under the names of this network, None for another file.
        products: runs everything that costs multiplications on a batch, where calling the network does more than that.
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
    """A module that has more weights than the plain one that it stands for."""

    def adds(self) -> tuple[str, ...]:
        """Beginnings of the names of those weights."""
        ...


def about(network: nn.Module) -> About:
    """What a network says of itself; all names are those of its own weights."""
    added = (
        f"{name}.{beginning}".removeprefix(".")
        for name, module in network.named_modules()
        if isinstance(module, Adds)
        for beginning in module.adds()
    )
    return replace(_word(network), added=tuple(added))


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
    """What timm knows of a network of its own kind."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    classifier = cfg.get("classifier")
    if classifier is None and cfg.get("architecture"):  # a feature extractor does not tell
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
    """The network in timm's feature extractor, and what stands before its names there; others as they are, and ""."""
    return (network.model, "model.") if isinstance(network, FeatureGetterNet) else (network, "")


def _parts(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _within(prefix: str, word: About) -> About:
    """The word of a part, by the names that its weights have in the whole."""

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
    """The first of them that knows a file."""

    def renamed(state_dict: Weights) -> Renamed | None:
        results = (known(state_dict) for known in official if known is not None)
        return next((result for result in results if result is not None), None)

    return renamed

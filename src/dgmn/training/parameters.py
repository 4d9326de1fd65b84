"""Which parameters are trained, and at which learning rates."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from timm.models import group_parameters
from timm.optim import auto_group_layers, param_groups_weight_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgmn.about import about, unwrapped
from dgmn.errors import InputError, did_you_mean


def freeze_parts(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Excludes parts of a network from the training.

    Args:
        network: the network.
        patterns: names of modules or parameters, or globs, as `insert` takes them: `stages.0`, `stages.*.downsample`.

    Returns:
        The frozen batch norms, which must stay in evaluation mode.

    Raises:
        InputError (a ValueError): a pattern names nothing, or nothing is left to train.
    """
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"model.freeze must be a name or glob, or a list of them, got {patterns!r}")
    parameters = dict(network.named_parameters())
    norms: dict[str, nn.Module] = {}
    for pattern in patterns:
        parts = pattern.split(".")
        frozen = [parameter for name, parameter in parameters.items() if _inside(parts, name)]
        inside = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, _BatchNorm) and _inside(parts, name)
        }
        if not frozen and not inside:
            modules = [
                name for name, module in network.named_modules() if name and any(True for _ in module.parameters())
            ]
            names = [*modules, *parameters]
            # The names at the place where the pattern stops to fit.
            depth = max((_fitting(parts, name) for name in names), default=0)
            near = sorted({".".join(n.split(".")[: depth + 1]) for n in names if _fitting(parts, n) == depth})
            some = f"; for instance {', '.join(near[:8])}"
            raise InputError(
                f"model.freeze: {pattern!r} is the name of no part with parameters{did_you_mean(pattern, names, some)}"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
        norms |= inside
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"model.freeze {list(patterns)}: all of the network is frozen, there is nothing to train")
    for norm in norms.values():
        norm.eval()
    return list(norms.values())


def frozen_in_vain(network: nn.Module, multipliers: Mapping[str, float]) -> list[str]:
    """A line for everything that has no effect because it is frozen: learning rates, and inserted modules at 0."""
    parameters = dict(network.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    lines = [
        f"model.lr_multipliers: {key} has no effect, all such parameters are frozen"
        for key in multipliers
        if not any(key in name for name in trained)
    ]
    gates = {name: gate for name, gate in parameters.items() if name.endswith(".inserted_gate")}
    closed = [name.rpartition(".")[0] for name, gate in gates.items() if not gate.requires_grad and not gate.any()]
    if closed:
        lines.append(f"model.freeze: freezes {closed[0]} with a gate of 0: it was inserted, but will never do anything")
    return lines


def _inside(parts: Sequence[str], name: str) -> bool:
    """Whether a part with this name is one that a pattern names, or is inside of one."""
    return _fitting(parts, name) == len(parts)


def _fitting(parts: Sequence[str], name: str) -> int:
    """How many parts of a pattern fit the beginning of a name."""
    count = 0
    for part, piece in zip(parts, name.split("."), strict=False):
        if not fnmatchcase(piece, part):
            break
        count += 1
    return count


def layer_scales(network: nn.Module, decay: float) -> dict[str, float]:
    """Factors of the learning rate that shrink towards the first layer.

    The last layer has `decay ** 0` and each one before it a factor `decay` less. The layers are those of timm, blocks
    for instance. A network's own classifier is its last layer, and so are all parts behind a backbone.

    Args:
        network: the network.
        decay: above 0 and at most 1.

    Returns:
        The factor of every parameter's name.

    Raises:
        InputError (a ValueError): `decay` is out of range, or timm knows no layers of the network.
    """
    if not 0 < decay <= 1:
        raise InputError(f"model.layer_decay must be above 0 and at most 1, got {decay}")
    part, prefix, behind = network, "", 0
    while about(part).backbone:
        place = about(part).backbone
        part, prefix, behind = part.get_submodule(place), f"{prefix}{place}.", 1
    inner, inside = unwrapped(part)
    matcher = getattr(inner, "group_matcher", None)
    layers = group_parameters(inner, matcher(coarse=False), reverse=True) if matcher else auto_group_layers(inner)
    last = max(layers.values(), default=0)
    if last == 0:
        raise InputError(f"model.layer_decay: timm knows no layers of {type(inner).__name__}")
    found = {f"{prefix}{inside}{name}": decay ** (last - layer + behind) for name, layer in layers.items()}
    return {name: found.get(name, 1.0) for name, _ in network.named_parameters()}


def decay_groups(network: nn.Module, norms_and_biases: bool) -> list[dict[str, Any]]:
    """The trained parameters; those without weight decay are a group of their own.

    Args:
        network: the network.
        norms_and_biases: whether norms and biases have weight decay, too; then there is one group.
    """
    if norms_and_biases:
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]
    groups: list[dict[str, Any]] = param_groups_weight_decay(network, no_weight_decay_list=about(network).undecayed)
    for group in groups:
        if group["weight_decay"]:
            del group["weight_decay"]  # so that the optimiser's own weight decay applies
    return groups


def multiplied(
    groups: Sequence[dict[str, Any]],
    model: nn.Module,
    multipliers: Mapping[str, float],
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Splits parameter groups by the factor of their learning rate.

    Each group holds its factor in `lr_multiplier`. Groups with factor 1 come first.

    Args:
        groups: groups of the model's parameters.
        model: the model.
        multipliers: factors of the parameters whose names contain the key; if several fit, the longest counts.
        scales: more factors, by the parameters' names.

    Raises:
        InputError (a ValueError): a key is in no parameter's name, or a multiplier is below 0 or not finite.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for key, value in multipliers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"lr_multipliers: {key!r} must be a finite number of at least 0, got {value}")
        if not any(key in name for name in names.values()):
            some = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names.values()})[:8])
            raise InputError(f"lr_multipliers: {key!r} is in no parameter's name; they begin with {some} ...")
    keys = sorted(multipliers, key=len, reverse=True)
    split: dict[tuple[float, int], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for parameter in group["params"]:
            name = names[parameter]
            factor = next((multipliers[key] for key in keys if key in name), 1.0) * (scales or {}).get(name, 1.0)
            empty = {**group, "params": [], "lr_multiplier": factor}
            split.setdefault((factor, i), empty)["params"].append(parameter)
    # The first group's learning rate is the one that is logged.
    return [split[place] for place in sorted(split, key=lambda place: (place[0] != 1.0, place[1]))]

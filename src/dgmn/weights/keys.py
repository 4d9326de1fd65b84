"""Finds the weights of a network in a state dict, whatever prefix their names have. Pure: dict in, dict out."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dgmn.about import Renamed, about, unwrapped
from dgmn.errors import InputError

Rules = tuple[tuple[str, Callable[[re.Match[str]], str]], ...]
"""Patterns of whole names, each with a function from the match to the new name."""

_COUNT = ".num_batches_tracked"


class OtherClassesError(InputError):
    """Only the classifier does not fit: the weights are for another number of classes."""


@dataclass(frozen=True)
class Match:
    """A state dict under the model's names, and a record of what was matched.

    Attributes:
        state_dict: complete, except for the classifier if that is left out.
        origin: whose names the weights had, for messages.
        ignored: names that the model has no place for.
        fresh: names whose tensors are the model's own, because the network of the weights lacks them.
    """

    state_dict: dict[str, Tensor]
    origin: str
    ignored: tuple[str, ...]
    fresh: tuple[str, ...] = ()


# What FSDP, torch.compile and activation checkpoints put around a module, at any place in a network.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AROUND = "module."  # DistributedDataParallel, AveragedModel, ModelEma
_STEPS = "n_averaged"  # of AveragedModel


def without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes what wrappers of networks and modules add to the names.

    `module.` is removed where all names begin with it; in the middle it may be a module of the network's own.

    Raises:
        InputError (a ValueError): two different tensors would get the same name.
    """
    cleaned: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = _WRAPPER.sub("", key)
        if name in cleaned and cleaned[name] is not tensor and not _same(cleaned[name], tensor):
            raise InputError(f"two tensors have the name {name!r}, one of them in a wrapper")
        cleaned[name] = tensor
    names = [name for name in cleaned if name != _STEPS]
    if names and all(name.startswith(_AROUND) for name in names):
        return without_wrappers({name.removeprefix(_AROUND): cleaned[name] for name in names})
    return cleaned


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def match_keys(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    *,
    reset_head: bool = False,
    check_shapes: bool = True,
    allow_unknown: bool = False,
) -> Match:
    """Finds the weights of `model` in a state dict of any known layout, strictly.

    It knows published files, which the model recognises itself (see [`About.official`][dgmn.about.About]), and the
    model's own names behind any prefix. It leaves out the weights of parts that the model was built without (the
    classifier of a `features_only` network, its stages after the last one asked for) and of networks around it;
    `ignored` lists them. Two kinds of weights may be absent: what the model adds to a plain network, if all of it is
    absent, and the norms' counts of batches, which frozen norms lack. The model's tensors stay; `fresh` lists them.

    Args:
        state_dict: name to tensor.
        model: the network to fill; not changed.
        reset_head: leave out the classifier, whatever number of classes it has.
        check_shapes: False if the caller adapts shapes.
        allow_unknown: also leave out the names that the model does not know.

    Raises:
        InputError (a ValueError): names are missing or unknown, or shapes differ; the message lists them. It is an
            `OtherClassesError` if only the classifier's shapes differ.
    """
    network, wrapper = unwrapped(model)
    word = about(network)
    expected = network.state_dict()
    found = word.official(state_dict) if word.official is not None else None
    found = found or _own_names(state_dict, expected)

    source = dict(found.state_dict)
    fresh = [key for key in expected if key.startswith(word.added)] if word.added else []
    if any(key in source for key in fresh):
        fresh = []
    fresh += [key for key in expected if key.endswith(_COUNT) and key not in source and key not in fresh]
    source |= {key: expected[key] for key in fresh}
    heads = {key for key in expected if reset_head and key.startswith(word.classifier)}
    wanted = {key: source[key] for key in expected if key in source and key not in heads}
    missing = [key for key in expected if key not in source and key not in heads]
    left = [key for key in source if key not in wanted]
    pruned = tuple(part for part in word.optional if not any(key.startswith(part) for key in expected))
    unknown = [key for key in left if key not in heads and not key.startswith(pruned)]
    unknown = [] if allow_unknown else [key for key in unknown if not key.endswith(_COUNT)]
    if missing or unknown:
        problems = [f"names missing ({len(missing)}): {_first(missing)}"] if missing else []
        problems += [f"names unknown ({len(unknown)}): {_first(unknown)}"] if unknown else []
        if any("parametrizations." in key for key in source):
            problems.append("it has parametrised weights: call remove_parametrizations on the network before saving")
        if unknown and all(key.endswith(".conv.bias") for key in unknown):
            problems.append("it looks like the weights of a fused network: save them before dgmn.fuse")
        raise InputError(f"not a checkpoint of this {type(model).__name__} ({found.origin}); {'; '.join(problems)}")
    wrong = [key for key, tensor in wanted.items() if tensor.shape != expected[key].shape]
    if wrong and check_shapes:
        shapes = [f"{key} is {tuple(wanted[key].shape)}, wanted {tuple(expected[key].shape)}" for key in wrong]
        message = f"{len(wrong)} shapes differ: {_first(shapes, 3)}"
        if all(key.startswith(word.classifier) for key in wrong):
            advice = "; the number of classes differs: reset_head=True leaves the classifier out"
            raise OtherClassesError(message + advice)
        raise InputError(message)
    floats = [key for key in wanted if expected[key].is_floating_point()]
    kinds = [key for key in floats if not wanted[key].is_floating_point()]
    if kinds:
        types = [f"{key} is {wanted[key].dtype}, wanted {expected[key].dtype}" for key in kinds]
        raise InputError(f"{len(kinds)} types differ: {_first(types, 3)}")
    # Not worth a report: counts of batches for norms of the model that keep none.
    left = [key for key in left if not (key.endswith(_COUNT) and key.replace(_COUNT, ".running_mean") in expected)]
    named = {wrapper + key: tensor for key, tensor in wanted.items()}
    return Match(named, found.origin, (*left, *found.elsewhere), tuple(wrapper + key for key in fresh))


def _own_names(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Renamed:
    """The weights with the wanted names, behind the prefix that most of these names share in the state dict.

    A training run keeps its network under `model.`, a detector keeps its backbone under a name of its own, and so on.
    If no wanted name is found, all names are taken as they are; the error message then lists what is missing.
    """
    names = list(expected)
    probes = names[:1] + names[len(names) // 2 : len(names) // 2 + 1] + names[-1:]
    beginnings = {key.removesuffix(probe) for probe in probes for key in state_dict if f".{key}".endswith(f".{probe}")}

    def fits(beginning: str) -> tuple[int, int]:
        return sum(beginning + name in state_dict for name in names), -len(beginning)

    best = max(sorted({"", *beginnings}), key=fits)
    inner, elsewhere = under(state_dict, best)
    origin = f"names under {best!r}" if best else "plain names"
    return Renamed(inner, origin, elsewhere)


def under(state_dict: Mapping[str, Tensor], beginning: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors whose names have this prefix, without the prefix, and all other names."""
    inner = {key.removeprefix(beginning): tensor for key, tensor in state_dict.items() if key.startswith(beginning)}
    return inner, tuple(key for key in state_dict if not key.startswith(beginning))


def rename(state_dict: Mapping[str, Tensor], rules: Rules, whose: str) -> dict[str, Tensor]:
    """Renames every tensor by the first rule that fits its name.

    Raises:
        InputError (a ValueError): no rule fits a name.
    """
    mapped: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, key)
            if match:
                mapped[replacement(match)] = tensor
                break
        else:
            raise InputError(f"unknown key {key!r}: not a name of the official {whose}")
    return mapped


def _first(names: Iterable[str], count: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more

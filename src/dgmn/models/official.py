"""Renames the weights of published networks to our names. Pure: dict in, dict out."""

import re

from torch import Tensor

from dgmn.about import Renamed, Weights
from dgmn.errors import InputError
from dgmn.weights.keys import Rules, rename, under

# A name that every published DGMN2 has, behind any prefix.
_FIRST = "patch_embed1.conv1.weight"
_DGMN2_RULES: Rules = (
    (r"patch_embed1\.conv([123])\.(\w+)", lambda m: f"stem.{int(m[1]) - 1}.conv.{m[2]}"),
    (r"patch_embed1\.norm([123])\.(\w+)", lambda m: f"stem.{int(m[1]) - 1}.bn.{m[2]}"),
    (r"patch_embed([234])\.conv\.(\w+)", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv.{m[2]}"),
    (r"patch_embed([234])\.norm\.(\w+)", lambda m: f"stages.{int(m[1]) - 1}.downsample.bn.{m[2]}"),
    (
        r"block([1234])\.(\d+)\.attn\.conv_offset\.(\w+)",
        lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.attn.offset.{m[3]}",
    ),
    (
        r"block([1234])\.(\d+)\.attn\.pos_emb\.(\w+)",
        lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.attn.rel_pos.{m[3]}",
    ),
    (
        r"block([1234])\.(\d+)\.((?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.\w+)",
        lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.{m[3]}",
    ),
    (r"head\.(\w+)", lambda m: f"head.{m[1]}"),
)


def dgmn2_from_official(state_dict: Weights) -> dict[str, Tensor]:
    """Renames the weights of an official DGMN2 backbone or classifier to our names.

    Raises:
        InputError (a ValueError): a name that the official network does not have.
    """
    return rename(state_dict, _DGMN2_RULES, "DGMN2 network")


def official_dgmn2(state_dict: Weights) -> Renamed | None:
    """The DGMN2 in a published classifier, detector or segmenter, under our names; None for another file."""
    prefix = next((key.removesuffix(_FIRST) for key in state_dict if key.endswith(_FIRST)), None)
    if prefix is None:
        return None
    inner, elsewhere = under(state_dict, prefix)
    origin = f"official network under {prefix!r}" if prefix else "official network"
    return Renamed(dgmn2_from_official(inner), origin, elsewhere)


def official_around_dgmn2(
    state_dict: Weights, rules: Rules, whose: str, ours: str, theirs: str = "backbone."
) -> Renamed | None:
    """The weights of a published network with a DGMN2 inside, under our names; None for another file.

    Args:
        state_dict: name to tensor, as in the file.
        rules: rules for the names outside the DGMN2.
        whose: name of the network, for messages.
        ours: prefix of the DGMN2's names in our network.
        theirs: prefix of the DGMN2's names in the published network.
    """
    if theirs + _FIRST not in state_dict:
        return None
    inner, _ = under(state_dict, theirs)
    outer = {key: tensor for key, tensor in state_dict.items() if not key.startswith(theirs)}
    mapped = {ours + key: tensor for key, tensor in dgmn2_from_official(inner).items()}
    return Renamed(mapped | rename(outer, rules, whose), f"official {whose}")


# The official code numbers the branches 1 to 4 in the names of their gates, and letters them a to d in all other names.
# The layer that predicts the weights is `kernel_conv` in code with walks, `cat` in code without.
_BRANCH = "abcd"
_MODULE_RULES = (
    (re.compile(r"gamma([1-4])"), "beta.{}"),
    (re.compile(r"off_conv([a-d])\.weight"), "messages.{}.walks.weight"),
    (re.compile(r"(?:cat|kernel_conv)([a-d])\.weight"), "messages.{}.filters.weight"),
)


def dgmn_from_official(state_dict: Weights) -> dict[str, Tensor]:
    """Renames the weights of one DGMN module of the official code to the names of `DGMN(form="released")`.

    Raises:
        InputError (a ValueError): a name that the module does not have, or two names for one tensor.
    """
    mapped: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        found = next(((match[1], ours) for rule, ours in _MODULE_RULES if (match := rule.fullmatch(key))), None)
        if found is None:
            raise InputError(f"unknown key {key!r}: not a name of the official DGMN module")
        branch = int(found[0]) - 1 if found[0].isdigit() else _BRANCH.index(found[0])
        name = found[1].format(branch)
        if name in mapped:
            raise InputError(f"{key!r} is also there under its other name: not an official DGMN module")
        mapped[name] = tensor
    return mapped


def dgmn_resnet_from_official(state_dict: Weights) -> dict[str, Tensor]:
    """The DGMN modules in an official detector's weights, under their names in a `DGMNResNet`.

    That network needs `module_args={"form": "released"}`. The official file has the modules under `model`, with names
    such as `backbone.body.layer4.<block>.dw_block.`. The rest of the file is left out: it belongs to a Mask R-CNN with
    other conventions, which is not defined here.

    Raises:
        InputError (a ValueError): there is no such module, or a module has unknown names.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        found = re.fullmatch(r"(?:module\.)?backbone\.body\.(layer\d+\.\d+)\.dw_block\.(.+)", key)
        if found:
            modules.setdefault(found[1], {})[found[2]] = tensor
    if not modules:
        raise InputError("no module in it: no name begins like backbone.body.layer4.0.dw_block.")
    return {
        f"{block}.act2.module.{name}": tensor
        for block, weights in modules.items()
        for name, tensor in dgmn_from_official(weights).items()
    }


def refuse_released(state_dict: Weights) -> None:
    """Refuses a released detector of the first paper, whose modules are read in another way.

    Raises:
        InputError: the weights are from such a detector.
    """
    if any(".dw_block." in key for key in state_dict):
        raise InputError("the modules of a released DGMN are read by dgmn.models.official.dgmn_resnet_from_official")

"""Maps from the official names of the DGMN modules' weights (CVPR 2020) to ours. Pure: dict in, dict out."""

import re
from collections.abc import Mapping

from torch import Tensor

from dgmn.errors import InputError

# Branches are numbered 1 to 4 where they are gated, and lettered where they are computed. What predicts the weights has
# another name where the code has no walks.
_BRANCH = "abcd"
_RULES = (
    (re.compile(r"gamma([1-4])"), "beta.{}"),
    (re.compile(r"off_conv([a-d])\.weight"), "messages.{}.walks.weight"),
    (re.compile(r"(?:cat|kernel_conv)([a-d])\.weight"), "messages.{}.filters.weight"),
)


def dgmn_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of one DGMN module of the official code to those of `DGMN(form="released")`.

    Raises:
        InputError (a ValueError): a name that the module does not have, or two names of one tensor.
    """
    mapped: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        found = next(((match[1], ours) for rule, ours in _RULES if (match := rule.fullmatch(key))), None)
        if found is None:
            raise InputError(f"unknown key {key!r}: not a name of the official DGMN module")
        branch = int(found[0]) - 1 if found[0].isdigit() else _BRANCH.index(found[0])
        name = found[1].format(branch)
        if name in mapped:
            raise InputError(f"{key!r} is there under its other name, too: not an official DGMN module")
        mapped[name] = tensor
    return mapped


def dgmn_resnet_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The modules in an official detector's weights, under their names in a `DGMNResNet` with such modules.

    Its modules are `module_args={"form": "released"}`; the official file has them under `model`, named
    `backbone.body.layer4.<block>.dw_block.` and so on. What else is in the file is left out: it is of a Mask R-CNN
    with other conventions, which is not defined here.

    Raises:
        InputError (a ValueError): no such module in it, or one with unknown names.
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

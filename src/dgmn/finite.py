"""Refuses weights and scores that are no numbers."""

from collections.abc import Mapping

from torch import Tensor

from dgmn.errors import InputError
from dgmn.ops.tracing import is_exporting


def check_weights(weights: Mapping[str, Tensor], whose: str) -> None:
    """Refuses weights that hold NaN: everything that is computed from them is NaN.

    Raises:
        InputError (a ValueError): a tensor holds NaN; the message begins with `whose`.
    """
    bad = [name for name, tensor in weights.items() if not tensor.is_meta and bool(tensor.isnan().any())]
    if bad:
        raise InputError(
            f"{whose}: {len(bad)} of {len(weights)} tensors hold NaN, {bad[0]} among them: its training went wrong; "
            "take the weights of an earlier epoch"
        )


def check_scores(*scores: Tensor) -> None:
    """Refuses scores that hold NaN: a threshold would drop them without a word, and no JSON holds them.

    Args:
        *scores: logits or probabilities.

    Raises:
        InputError (a ValueError): there are such scores.
    """
    if not is_exporting() and any(bool(x.isnan().any()) for x in scores):
        raise InputError("the network gives scores that are not finite; try another precision or weights")

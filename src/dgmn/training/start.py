"""Weights that a training starts from."""

import warnings
from pathlib import Path

from torch import nn

from dgmn.errors import InputError
from dgmn.training.messages import say
from dgmn.weights import load_checkpoint


def start_from(network: nn.Module, checkpoint: Path) -> None:
    """Fills a network with weights to fine-tune, and says what was taken.

    All of them; or all but the classifier, where the checkpoint has other classes; or those of its backbone, where the
    file holds a classifier or a network for another task.

    Raises:
        InputError: none of it fits; the message names what differs.
    """
    try:
        say(str(load_checkpoint(network, checkpoint)))
        return
    except InputError as error:
        reason = error
    if "reset_head" in str(reason):
        report = load_checkpoint(network, checkpoint, reset_head=True)
        warnings.warn("the checkpoint has other classes: its classifier is left out and trained anew", stacklevel=2)
        say(str(report))
        return
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise reason
    try:
        say(f"backbone: {load_checkpoint(backbone, checkpoint)}")
    except InputError:
        raise reason from None

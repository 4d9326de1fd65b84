"""Weights that a training starts from."""

import warnings
from pathlib import Path

from torch import nn

from dgmn.errors import InputError
from dgmn.training.messages import say
from dgmn.weights import load_checkpoint, read_checkpoint


def start_from(network: nn.Module, checkpoint: Path) -> bool:
    """Fills a network with weights to fine-tune, and says what was taken.

    All of them; or all but the classifier, where the checkpoint has other classes; or those of its backbone, where the
    file holds a classifier or a network with another head.

    Returns:
        Whether all of the network was filled.

    Raises:
        InputError: none of it fits; the message names what differs.
    """
    backbone = getattr(network, "backbone", None)
    backbone = getattr(backbone, "body", backbone)  # of a detector, inside its pyramid
    if not isinstance(backbone, nn.Module):
        return _whole(network, checkpoint)
    if not any("backbone." in key for key in read_checkpoint(checkpoint).state_dict):
        say(f"backbone: {load_checkpoint(backbone, checkpoint, allow_unknown=True)}")
        return False
    try:
        return _whole(network, checkpoint)
    except InputError as reason:
        try:
            say(f"backbone: {load_checkpoint(backbone, checkpoint, allow_unknown=True)}")
        except InputError:
            raise reason from None
        return False


def _whole(network: nn.Module, checkpoint: Path) -> bool:
    try:
        report = load_checkpoint(network, checkpoint)
        say(str(report))
        return all(name.endswith(".num_batches_tracked") for name in report.fresh)  # no weights of modules among them
    except InputError as error:
        if "reset_head=True" not in str(error):
            raise
    report = load_checkpoint(network, checkpoint, reset_head=True)
    warnings.warn("the checkpoint has other classes: its classifier is left out and trained anew", stacklevel=3)
    say(str(report))
    return False

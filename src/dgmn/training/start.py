"""Weights that a training starts from."""

import warnings

from torch import nn

from dgmn.about import about
from dgmn.errors import InputError
from dgmn.report import say
from dgmn.weights import Checkpoint, LoadReport, OtherClassesError, load_checkpoint


def start_from(network: nn.Module, checkpoint: Checkpoint) -> bool:
    """Fills a network with weights to fine-tune, and says what was taken.

    All of them; or all but the classifier, where the checkpoint has other classes; or those of its backbone, where the
    file holds a classifier or a network with another head.

    Returns:
        Whether all of the network was filled.

    Raises:
        InputError: none of it fits; the message names what differs.
    """
    try:
        report = _whole(network, checkpoint)
    except InputError:
        backbone = about(network).backbone
        if not backbone:
            raise
        report = load_checkpoint(network.get_submodule(backbone), checkpoint, allow_unknown=True)
        say(f"backbone: {report}")
        return False
    say(str(report))
    return report.complete


def _whole(network: nn.Module, checkpoint: Checkpoint) -> LoadReport:
    try:
        return load_checkpoint(network, checkpoint)
    except OtherClassesError:
        report = load_checkpoint(network, checkpoint, reset_head=True)
    warnings.warn("the checkpoint has other classes: its classifier is left out and trained anew", stacklevel=4)
    return report

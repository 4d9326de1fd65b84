"""Loads the weights that a training starts from."""

from torch import nn

from dgmn.about import about
from dgmn.errors import InputError
from dgmn.report import say
from dgmn.weights import Checkpoint, LoadReport, OtherClassesError, load_checkpoint


def start_from(network: nn.Module, checkpoint: Checkpoint) -> bool:
    """Fills a network with weights to fine-tune, and prints what was loaded.

    It loads all weights. If the checkpoint has other classes, it leaves out the classifier. If the file holds a
    classifier or a network with another head, it fills only the backbone.

    Returns:
        Whether the whole network was filled.

    Raises:
        InputError: the weights fit neither the network nor its backbone; the message names what differs.
    """
    try:
        return _filled(network, checkpoint)
    except InputError as error:
        own = checkpoint.description
        if own is None:
            raise
        on = f" on {own['backbone']}" if own.get("backbone") else ""
        raise InputError(f"{checkpoint.path} is of {own['model']}{on}: {error}") from error


def _filled(network: nn.Module, checkpoint: Checkpoint) -> bool:
    try:
        report = _whole(network, checkpoint)
    except InputError:
        if not about(network).backbone:
            raise
        report = _backbone(network, checkpoint)
        say(f"backbone: {report}")
        return False
    say(str(report))
    return report.complete


def _backbone(network: nn.Module, checkpoint: Checkpoint) -> LoadReport:
    """Fills the backbone, or the backbone's own: a pyramid has one inside."""
    backbone = network.get_submodule(about(network).backbone)
    try:
        return load_checkpoint(backbone, checkpoint, allow_unknown=True)
    except InputError:
        if not about(backbone).backbone:
            raise
        return _backbone(backbone, checkpoint)


def _whole(network: nn.Module, checkpoint: Checkpoint) -> LoadReport:
    try:
        return load_checkpoint(network, checkpoint)
    except OtherClassesError:
        report = load_checkpoint(network, checkpoint, reset_head=True)
    say("the checkpoint has other classes: its classifier is left out, and the network's own has random weights")
    return report

"""Checks what detectors are trained with."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from dgmn.errors import InputError


def check_labels(targets: Sequence[Mapping[str, Tensor]], num_classes: int) -> None:
    """Refuses labels that are no class: they would train another class, or end the run inside a kernel.

    Raises:
        InputError (a ValueError): a label is not in 0 to num_classes - 1, or labels are no whole numbers.
    """
    for i, target in enumerate(targets):
        labels = target["labels"]
        if labels.is_floating_point() or labels.dim() != 1 or len(labels) != len(target["boxes"]):
            raise InputError(
                f"targets[{i}]['labels'] must be whole numbers, one for each of {len(target['boxes'])} boxes, "
                f"got {tuple(labels.shape)} of {labels.dtype}"
            )
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise InputError(f"targets[{i}]['labels'] must be in 0..{num_classes - 1}, got {wrong[0].item()}")

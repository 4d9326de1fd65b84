"""Checkpoint files that stay complete when a run is killed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.finite import check_weights
from dgmn.weights.description import check_description
from dgmn.weights.load import check_tensors, read_file
from dgmn_base.files import writing


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best evaluation of a run, also if the run's folder was moved or copied before it is continued.

    Lightning would begin anew then. What a file says of other paths is not followed: Lightning deletes what lies there.
    """

    @property
    @override
    def state_key(self) -> str:
        # As Lightning's own class, so that runs which began before this one existed find their state.
        key: str = super().state_key
        return key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        file = Path(self.dirpath or ".") / f"{self.filename}{self.FILE_EXTENSION}"
        score = state_dict.get("best_model_score")
        if not file.is_file() or not isinstance(score, Tensor):
            return
        self.best_model_path = self.kth_best_model_path = str(file)
        self.best_model_score = self.kth_value = score
        self.best_k_models = {str(file): score}


def reopen_epoch(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Lets a run go on within the epoch in which `max_steps` or `max_time` ended it.

    Lightning counts that epoch as processed, and would leave out the rest of its steps or make them with the images of
    the next epoch.

    Returns:
        The number of complete epochs, and how many batches of the next were seen.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    cut = batches["current"]["ready"] > 0 and not batches["is_last_batch"]
    if cut and epochs["current"]["processed"] == epochs["current"]["ready"]:
        epochs["current"]["processed"] -= 1
        epochs["total"]["processed"] -= 1
    return epochs["current"]["processed"], batches["current"]["ready"] if cut else 0


def seen_batches(trainer: L.Trainer) -> int:
    """The batches of this epoch that a run has seen before it was cut off."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return 0 if progress.is_last_batch else int(progress.current.ready)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it, so that the target is always complete.

    Lightning writes to the temporary folder and moves the file. A move across file systems is a copy, which can be
    cut off. Reading never executes code from the file.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # an object store: its own writes are atomic
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with writing(Path(path)) as file:
            torch.save(checkpoint, file)

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        local = "://" not in str(path)
        if local:
            # Copied from the mapped file, whose content may change while the run goes on.
            checkpoint = copy.deepcopy(read_file(Path(path)))
        else:
            checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("pytorch-lightning_version"), str):
            raise InputError(
                f"checkpoint {path}: not written by a training run; give weights as --model.checkpoint {path}"
            )
        if local:
            check_tensors(checkpoint.get("state_dict"), Path(path))
        check_weights(checkpoint["state_dict"], f"checkpoint {path}")
        if "dgmn" in checkpoint:
            check_description(checkpoint["dgmn"], Path(path))
        return checkpoint

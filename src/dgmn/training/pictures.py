"""Pictures of predictions while a network is trained."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dgmn.about import Preprocessing
from dgmn.images import save_image

_IN_TENSORBOARD = 10  # about so many pictures of a run


def denormalise(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The picture from which a normalised image (3, H, W) was made."""
    mean, std = (image.new_tensor(x).view(3, 1, 1) for x in (preprocessing.mean, preprocessing.std))
    picture: Image.Image = TF.to_pil_image((image.float() * std + mean).clamp(0, 1).cpu())
    return picture


def keep(trainer: L.Trainer, picture: Image.Image) -> None:
    """Writes the picture of a validation into the run's folder, and every few epochs to TensorBoard."""
    epoch = trainer.current_epoch
    save_image(picture, Path(trainer.default_root_dir) / "pictures" / f"epoch_{epoch:04d}.jpg", quality=90)
    epochs = max(trainer.max_epochs or 0, 1)
    if epoch % max(1, epochs // _IN_TENSORBOARD) == 0 or epoch == epochs - 1:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                board: Any = logger.experiment
                board.add_image("predictions", np.asarray(picture), trainer.global_step, dataformats="HWC")

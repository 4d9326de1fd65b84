"""The LightningDataModule that all tasks extend: loaders for several processes, and for runs that are resumed."""

import sys
from collections.abc import Hashable, Sequence, Sized
from typing import Any, cast

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset

from dgmn.errors import InputError
from dgmn.training.callbacks import epoch_seed, run_seed
from dgmn.training.sampling import GroupedBatches, StepSampler


class ImageData(L.LightningDataModule):
    """Makes the loaders of a task's datasets.

    Attributes:
        batch_size: of each device.
        num_workers: processes of each device that load images.
    """

    batch_size: int
    num_workers: int

    def train_loader(
        self,
        dataset: Dataset[Any],
        sampler: Sampler[int] | None = None,
        steps: int | None = None,
        groups: Sequence[Hashable] | None = None,
        **options: Any,
    ) -> DataLoader[Any]:
        """Shuffled batches.

        Args:
            dataset: images of this task.
            sampler: chooses the images of an epoch for this process; None shuffles.
            steps: of an epoch; None passes through the set once.
            groups: of every image; a batch has images of one group.
            options: for the DataLoader.
        """
        trainer = self._trainer()
        seed = run_seed(trainer)
        if sampler is None:
            size, rank, replicas = len(cast(Sized, dataset)), trainer.global_rank, trainer.world_size
            if steps is not None:
                sampler = StepSampler(size, steps, self.batch_size, seed, rank, replicas)
            else:
                shuffled: Any = DistributedSampler
                sampler = shuffled(dataset, replicas, rank, shuffle=True, seed=seed, drop_last=True)
        # A resumed run's workers start before Lightning sets the sampler's epoch, and before `current_epoch` is right.
        epoch = trainer.fit_loop.epoch_progress.current.processed
        cast(Any, sampler).set_epoch(epoch)
        if len(cast(Sized, sampler)) < self.batch_size:
            raise InputError(
                f"data.batch_size {self.batch_size}: an epoch of one device has only {len(cast(Sized, sampler))} images"
            )
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch, trainer.global_rank))
        if groups is not None:
            options["batch_sampler"] = GroupedBatches(sampler, groups, self.batch_size)
        else:
            options |= {"batch_size": self.batch_size, "sampler": sampler, "drop_last": True}
        return self._loader(dataset, generator=generator, **options)

    def eval_loader(
        self, dataset: Dataset[Any], split: str, batch_size: int | None = None, **options: Any
    ) -> DataLoader[Any]:
        """Every image once, shared out among the processes.

        Args:
            dataset: images of this task.
            split: its name, for messages.
            batch_size: None for that of the training.
            options: for the DataLoader.
        """
        trainer = self._trainer()
        size = len(cast(Sized, dataset))
        if size < trainer.world_size:
            raise InputError(f"data: {size} {split} images are too few for {trainer.world_size} processes")
        # A DistributedSampler would repeat some to give all processes equally many.
        mine = Subset(dataset, range(trainer.global_rank, size, trainer.world_size))
        return self._loader(mine, batch_size=batch_size or self.batch_size, **options)

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Workers start anew in every epoch: forking takes no time, what Python 3.14 does by default takes seconds.
            multiprocessing_context="fork" if self.num_workers > 0 and sys.platform == "linux" else None,
            **options,
        )

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} makes its loaders for a Trainer: trainer.fit(task, data)")
        return self.trainer

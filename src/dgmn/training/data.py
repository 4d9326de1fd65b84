"""The LightningDataModule that all tasks extend: loaders for several processes, and for runs that are resumed."""

import os
import sys
from collections.abc import Callable, Hashable, Sequence, Sized
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler, Subset
from typing_extensions import override

from dgmn.about import Preprocessing, about
from dgmn.errors import InputError, check_number
from dgmn.report import DataReport, say
from dgmn.training.callbacks import epoch_seed, run_seed
from dgmn.training.checkpoint import seen_batches
from dgmn.training.sampling import GroupedBatches, RestOfEpoch, StepSampler
from dgmn_base.terminal import counted


class ImageData(L.LightningDataModule):
    """Makes the data loaders of a task; each task's subclass provides the datasets.

    Args:
        batch_size: images per device in a training step.
        num_workers: processes per device that load images, at most as many as there are cores for this process.
        epoch_steps: steps per epoch, after which validation runs; None: one pass through the training set.

    Raises:
        InputError (a ValueError): a number is too small.
    """

    collate: ClassVar[Callable[..., Any] | None] = None
    """Joins samples into a batch; None: PyTorch's default."""
    eval_batch_size: ClassVar[int | None] = None
    """Images per device in an evaluation step; None: `batch_size`."""

    def __init__(self, batch_size: int, num_workers: int, epoch_steps: int | None = None) -> None:
        super().__init__()
        numbers = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0), "epoch_steps": (epoch_steps, 1)}
        for name, (number, least) in numbers.items():
            if number is None and name == "epoch_steps":
                continue
            check_number(f"data.{name}", number, least)
        self.batch_size = batch_size
        self.num_workers = min(num_workers, _cores())  # more would only wait, and PyTorch warns of them
        self.epoch_steps = epoch_steps
        self._sets: dict[str, Any] = {}

    # --------------------------------------------------------------------------------------- what tasks define

    @property
    def names(self) -> Sequence[str] | None:
        """The class names, in the order of the network's outputs; None if the data does not name them."""
        raise NotImplementedError

    @property
    def has_test(self) -> bool:
        """Whether there are images for the test alone; otherwise it takes those of the validation."""
        return True

    def dataset(self, split: str) -> Dataset[Any]:
        """The dataset of "train", "val" or "test", with images as the network gets them.

        Raises:
            InputError: the dataset has no images; the message says what was expected.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Finds mistakes in the training and validation sets before a long training."""

    def validate(self, progress: Callable[[str, int, int], None]) -> DataReport:
        """Reads every image and annotation of the training and validation sets.

        Args:
            progress: called with the split, the number of its images, and how many of them are read.
        """
        raise NotImplementedError

    def class_counts(self) -> Sequence[int]:
        """How often the training data has each class, images or pixels, in the order of the classes."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Facts about the data that prediction needs, as plain values."""
        raise NotImplementedError

    def adapted(self, preprocessing: Preprocessing) -> Preprocessing:
        """The network's preprocessing, with the changes that the data makes to it."""
        return preprocessing

    # -------------------------------------------------------------------------------------------------- loaders

    @property
    def training_images(self) -> int:
        """The number of training images; 0 before `setup`."""
        return self._count("train")

    @property
    def validation_images(self) -> int:
        """The number of validation images; 0 before `setup`."""
        return self._count("val")

    def _count(self, split: str) -> int:
        return len(cast(Sized, self._sets[split])) if split in self._sets else 0

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the network that is trained or evaluated; ImageNet's if there is no network."""
        task = None if self.trainer is None else self.trainer.lightning_module
        network = getattr(task, "model", None)
        return self.adapted(about(network).preprocessing if isinstance(network, nn.Module) else Preprocessing())

    @override
    def setup(self, stage: str) -> None:
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            self._sets[split] = self.dataset(split)
        if stage == "fit":
            self.check()
        elif stage == "test" and not self.has_test:
            say("there are no images for the test alone: it takes those of the validation")

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self.train_loader(self._sets["train"], steps=self.epoch_steps)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader(self._sets["val"], "val")

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader(self._sets["test"], "test")

    def train_loader(
        self,
        dataset: Dataset[Any],
        sampler: Sampler[int] | None = None,
        steps: int | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> DataLoader[Any]:
        """A loader of shuffled batches.

        Args:
            dataset: images of this task.
            sampler: chooses the images of an epoch for this process; None shuffles.
            steps: steps per epoch, used without a `sampler`; None: one pass through the set.
            groups: the group of every image, see `GroupedBatches`.
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
            some = len(cast(Sized, sampler))
            smaller = max(some // 8 * 2, min(some, 2))  # mixup needs an even number
            advice = f"; give --data.batch_size {smaller}, for instance" if some else ""
            images = counted(some, "image")
            raise InputError(f"data.batch_size {self.batch_size}: an epoch has only {images} per device{advice}")
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch, trainer.global_rank))
        batches: Any = BatchSampler(sampler, self.batch_size, drop_last=True)
        if groups is not None:
            batches = GroupedBatches(sampler, groups, self.batch_size)
        if seen := seen_batches(trainer):
            batches = RestOfEpoch(batches, seen)
        return self._loader(dataset, generator=generator, batch_sampler=batches)

    def eval_loader(self, dataset: Dataset[Any], split: str) -> DataLoader[Any]:
        """A loader that gives every image of a split once, divided among the processes."""
        trainer = self._trainer()
        size = len(cast(Sized, dataset))
        if size < trainer.world_size:
            raise InputError(f"data: {counted(size, f'{split} image')}, too few for {trainer.world_size} processes")
        # A DistributedSampler would repeat some images, so that all processes get equally many.
        mine = Subset(dataset, range(trainer.global_rank, size, trainer.world_size))
        return self._loader(mine, batch_size=self.eval_batch_size or self.batch_size)

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            collate_fn=type(self).collate,
            pin_memory=torch.cuda.is_available(),
            # Workers start anew in every epoch. Forking them takes no time; the default of Python 3.14 takes seconds.
            multiprocessing_context="fork" if self.num_workers > 0 and sys.platform == "linux" else None,
            **options,
        )

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} needs a Trainer to make its loaders: trainer.fit(task, data)")
        return self.trainer


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

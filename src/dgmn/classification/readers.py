"""timm's readers of datasets by name: WebDataset's shards, Hugging Face datasets, TensorFlow datasets."""

import importlib.util
import logging
import tarfile
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from timm.data import create_dataset
from torch.utils.data import DataLoader, Dataset, IterableDataset
from typing_extensions import override

from dgmn.errors import InputError
from dgmn_base.files import listing, numbered_lines
from dgmn_base.terminal import counted

_NEEDS = {  # the module and how to install it
    "wds": ("webdataset", "webdataset"),
    "hfds": ("datasets", "datasets"),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets tensorflow"),
}


_IN_SHARDS = ("jpg", "png", "webp")  # what timm reads as images


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Dataset info file not found")


def check_reader(name: str) -> str:
    """The kind of a reader: "wds", "hfds" or "tfds".

    Raises:
        InputError: there is no such reader, or the package that it needs is not installed.
    """
    kind, slash, rest = name.partition("/")
    if kind not in _NEEDS or not slash or bool(rest) == (kind == "wds"):
        raise InputError(f"data.reader must be wds/, hfds/NAME or tfds/NAME, as timm calls them, got {name!r}")
    module, packages = _NEEDS[kind]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"data.reader {name}: this needs {module}: pip install {packages}")
    return kind


def reader_set(name: str, root: Path | None, split: str, training: bool, batch_size: int) -> Dataset[Any]:
    """The images and labels of a split.

    Args:
        name: name of the reader, as of `timm.data.create_dataset`.
        root: folder of the shards; for the others, folder where the dataset is, or is kept.
        split: name of the split. For shards, it may be names of files and the number of images:
            `train-{0000..0003}.tar|4000`.
        training: shuffle, and fill up the last batch.
        batch_size: images in a batch of this process.

    Raises:
        InputError: the dataset cannot be opened; the message says why.
    """
    if check_reader(name) == "wds":
        if root is None or not root.is_dir():
            raise InputError(f"data.root {root}: there is no such folder of shards")
        split = _shards(root, split)
        # Shards without timm's file about them are counted here, so it need not be missed.
        logging.getLogger("timm.data.readers.reader_wds").addFilter(_is_news)
    try:
        found: Any = create_dataset(
            name, None if root is None else str(root), split, is_training=training, batch_size=batch_size
        )
    except Exception as error:  # each library has errors of its own
        what = " ".join(str(error).split())[:300]
        raise InputError(f"data.reader {name}: {split} cannot be opened ({type(error).__name__}: {what})") from error
    found.target_transform = one_label
    return cast(Dataset[Any], found)


def _shards(root: Path, split: str) -> str:
    """The names and the number of images of the shards of a split, unless a file of timm's tells them."""
    if ".tar" in split or any((root / name).is_file() for name in ("_info.json", "info.json")):
        return split
    files = sorted(root.glob(f"{split}*.tar"))
    if not files:
        raise InputError(f"data.root {root}: no shards {split}*.tar; {listing(root)}")
    count = 0
    found: set[str] = set()
    for file in files:
        kinds: dict[str, set[str]] = {}
        try:
            with tarfile.open(file) as shard:
                for member in shard:
                    folder, slash, name = member.name.rpartition("/")
                    key, _, kind = name.partition(".")
                    kinds.setdefault(f"{folder}{slash}{key}", set()).add(kind.lower())
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{file}: damaged shard ({error})") from error
        found = found.union(*kinds.values())
        count += sum("cls" in each and not each.isdisjoint(_IN_SHARDS) for each in kinds.values())
    if not count:
        there, wanted = ", ".join(sorted(found)[:5]) or "nothing", f"KEY.cls and KEY.{', KEY.'.join(_IN_SHARDS)}"
        raise InputError(
            f"data.root {root}: no image with a label in {split}*.tar: these are {wanted}, there is {there}"
        )
    return f"{'::'.join(file.name for file in files)}|{count}"


def one_label(label: Any) -> int:
    """A label as a number.

    Raises:
        InputError: it is something else, for instance several labels.
    """
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise InputError(f"data: a label is {str(label)[:80]!r}: one label per image is trained here") from error


def class_names(images: Any, root: Path | None) -> list[str] | None:
    """The names of the classes, if the reader or a file `classes.txt` beside the shards tells them."""
    numbers = getattr(getattr(images, "reader", None), "class_to_idx", None)
    if numbers:
        return [str(name) for name in sorted(numbers, key=numbers.__getitem__)]
    file = None if root is None else root / "classes.txt"
    return [name for _, name in numbered_lines(file)] if file is not None and file.is_file() else None


def listed_labels(images: Any) -> Any:
    """The labels of a dataset that lists them, as most of torchvision's and timm's do; None for others."""
    for name in ("targets", "labels"):
        if hasattr(images, name):
            return getattr(images, name)
    reader: Any = getattr(images, "reader", None)
    if hasattr(reader, "samples"):  # of files
        return [label for _, label in reader.samples]
    if hasattr(reader, "label_key"):  # of Hugging Face
        return [one_label(label) for label in reader.dataset[reader.label_key]]
    return None


class Streamed(IterableDataset[Any]):
    """A dataset that can only be read from the beginning to the end, with its transform.

    Its `files` are the names of its shards.

    Args:
        images: timm's dataset.
        transform: of the images.
        workers: processes that read it.

    Raises:
        InputError: a process would have no shard to read.
    """

    def __init__(self, images: Any, transform: Any, workers: int) -> None:
        self.images = images
        images.transform = transform
        images.set_loader_cfg(num_workers=workers)
        self.files = list(getattr(getattr(images.reader, "split_info", None), "filenames", ()) or ())
        shards = len(self.files)
        self._processes = processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        readers = processes * max(workers, 1)
        if 0 < shards < readers and (images.reader.is_training or processes > 1):
            each = f"{counted(processes, 'process')} with {counted(max(workers, 1), 'worker')} each"
            raise InputError(
                f"data: {counted(shards, 'shard')} for {each}: every worker needs a shard; "
                f"give --data.num_workers {shards // processes}, or write more shards"
            )

    @property
    def exact(self) -> bool:
        """Whether every image comes once: timm gives all processes, and the steps of a training, equally many."""
        return not self.images.reader.is_training and self._processes == 1

    def __len__(self) -> int:
        # timm's own number leaves out the rest that workers cannot share evenly.
        return int(self.images.reader.num_samples) if self.exact else len(self.images)

    def __iter__(self) -> Any:
        return iter(self.images)


class StreamLoader(DataLoader[Any]):
    """Tells a streamed dataset its epoch, which Lightning tells samplers only."""

    epoch: Any = staticmethod(lambda: 0)

    def __len__(self) -> int:
        # Every worker may end with a batch that is not full; Lightning stops at this number, or where images end.
        return super().__len__() + (max(self.num_workers - 1, 0) if cast(Streamed, self.dataset).exact else 0)

    @override
    def __iter__(self) -> Any:
        cast(Streamed, self.dataset).images.set_epoch(self.epoch())
        return super().__iter__()

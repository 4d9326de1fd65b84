"""A run's folder: the checkpoint that the user means, and the process that writes to it."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dgmn_base.errors import InputError


def checkpoint_in(folder: Path, names: Sequence[str] = ("best", "last")) -> Path | None:
    """The checkpoint of a run's folder, the first that is there; None if it has none."""
    files = (place / f"{name}.ckpt" for place in (folder / "checkpoints", folder) for name in names)
    return next((file for file in files if file.is_file()), None)


def checkpoint_of(command: str, ckpt_path: str | None, root: Path) -> Path | None:
    """The checkpoint that `--ckpt_path` means for a command on a run.

    Args:
        command: "fit", "validate" or "test".
        ckpt_path: "last", "best", a file, a run's folder (its last checkpoint to continue, else its best), or None.
        root: the run's folder.

    Returns:
        The file; None if the command starts without a checkpoint.

    Raises:
        InputError: there is no such file, or a training would overwrite the checkpoints of another.
    """
    path = _named_checkpoint(command, ckpt_path, root)
    place = root / "checkpoints"
    held = next((file for name in ("last", "best") if (file := place / f"{name}.ckpt").exists()), None)
    if command == "fit" and held is not None and (path is None or path.parent.resolve() != place.resolve()):
        raise InputError(
            f"{root} already holds a run: continue it with --ckpt_path {held.stem}, "
            "or write the new one elsewhere with --trainer.default_root_dir FOLDER"
        )
    return path


def _named_checkpoint(command: str, ckpt_path: str | None, root: Path) -> Path | None:
    if ckpt_path is None:
        return None
    if ckpt_path in ("last", "best"):
        path = root / "checkpoints" / f"{ckpt_path}.ckpt"
        if path.is_file():
            return path
        if command == "fit" and ckpt_path == "last":
            return None
        raise InputError(f"--ckpt_path {ckpt_path}: there is no {path}")
    if Path(ckpt_path).is_dir():
        found = checkpoint_in(Path(ckpt_path), ("last", "best") if command == "fit" else ("best", "last"))
        if found is None:
            raise InputError(f"--ckpt_path {ckpt_path}: not a run's folder: it has no checkpoints/last.ckpt")
        return found
    if not Path(ckpt_path).is_file():
        raise InputError(f"--ckpt_path {ckpt_path}: no such file")
    return Path(ckpt_path)


@contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Keeps a run's folder for this process; another process that asks for it is refused, also on other machines.

    The operating system ends this when the process dies.

    Raises:
        InputError: another process has the folder; the message names it.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    owner = root / ".owner"
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        whose = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise InputError(
            f"{root}: {whose} is training here; wait until it ends, or train elsewhere with "
            "--trainer.default_root_dir FOLDER"
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()

"""Finds the checkpoint of a run that the user means."""

from pathlib import Path

from dgmn_base.errors import InputError


def checkpoint_of(command: str, ckpt_path: str | None, root: Path) -> Path | None:
    """The checkpoint that `--ckpt_path` means for a command on a run.

    Args:
        command: "fit", "validate" or "test".
        ckpt_path: "last", "best", a file, or None.
        root: the run's folder.

    Returns:
        The file; None if the command starts without a checkpoint.

    Raises:
        InputError: there is no such file, or a new run would overwrite an existing one.
    """
    last = root / "checkpoints" / "last.ckpt"
    if ckpt_path in ("last", "best"):
        path = last.with_name(f"{ckpt_path}.ckpt")
        if path.is_file():
            return path
        if command == "fit" and ckpt_path == "last":
            return None
        raise InputError(f"--ckpt_path {ckpt_path}: there is no {path}")
    if ckpt_path is not None:
        if not Path(ckpt_path).is_file():
            raise InputError(f"--ckpt_path {ckpt_path}: no such file")
        return Path(ckpt_path)
    if command == "fit" and last.exists():
        raise InputError(
            f"{root} already holds a run: continue it with --ckpt_path last, "
            "or write the new one elsewhere with --trainer.default_root_dir FOLDER"
        )
    return None

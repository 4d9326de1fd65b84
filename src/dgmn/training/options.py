"""The options of a run, so that one which is continued says what it does otherwise."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from typing_extensions import override

from dgmn.report import say


class RunOptions(L.Callback):
    """Keeps a run's options in its checkpoints, and says which of them are others when it is continued.

    Args:
        options: the options of `model` and `data`, in dicts, as `dgmn fit` has them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(_flat(options))
        self._continues = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._continues = stage == "fit"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"options": self.options}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = state_dict.get("options")
        if not self._continues or not isinstance(before, dict):  # a file may hold anything
            return
        for name, now in self.options.items():
            then = before.get(name, now)
            if then != now and isinstance(then, str) and not name.endswith(_TOLD):
                say(f"continued with {name} {now[:_SHOWN]} instead of {then[:_SHOWN]}")


_TOLD = ("data.root", "data.num_workers", "model.checkpoint", "pretrained")  # the task tells, or they are of the start
_SHOWN = 200  # characters of a value


def _flat(options: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str]]:
    """The names of the options as the command line has them, and their values as text."""
    for name, value in options.items():
        path = under if name == "init_args" else f"{under}.{name}".removeprefix(".")
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        elif name not in ("class_path", "dict_kwargs"):
            yield path, json.dumps(value, default=str)

"""Times a training step of the networks of `trainings.py`: `python benchmarks/training_steps.py --data FOLDER`.

A step is forward, loss, backward and optimiser, with the recipe, batch and images of the training, on two threads of a
CPU. Reading the images is not in it. The networks of a study take turns, so that a slower clock affects all. Writes
`training_steps_cpu.csv`, which `trainings.py --tables` puts into docs/proof.md.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from trainings import STEPS, STUDIES, arguments

from dgmn.cli import DgmnCLI
from dgmn_base.recipes import with_recipes

from pages import facts, write_csv

COLUMNS = ("study", "contender", "ms", "q25", "q75", "steps")
WARM_UP = 2  # steps at the start of a turn that do not count


class Clock(L.Callback):
    """Milliseconds of every step, from its batch to its end."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(1000 * (time.perf_counter() - self.start))


def turn(of: str, name: str, data: Path, work: Path, steps: int) -> list[float]:
    """The first steps of a training, after the warm-up."""
    study, clock = STUDIES[of], Clock()
    given = arguments(study, name, 0, data, work, work / "steps", {"data.num_workers": "0"})
    cli = DgmnCLI(with_recipes(given), run=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_steps=WARM_UP + steps, limit_val_batches=0, enable_checkpointing=False, callbacks=[clock], **quiet
    )
    trainer.fit(cli.model, cli.datamodule)
    return clock.steps[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--studies", nargs="+", default=[of for of in STUDIES if of != "pretraining"], choices=STUDIES)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every network")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--out", type=Path, default=STEPS)
    given = parser.parse_args()
    torch.set_num_threads(2)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as work:
        for of in given.studies:
            # Other walks and other weights at the start do not change the time of a step.
            same = {"model.checkpoint", "model.lr_multipliers"}
            times = {name: [] for name, options in STUDIES[of].contenders.items() if not same & set(options)}
            for i in range(given.rounds):
                names = list(times)
                for name in names[i % len(names) :] + names[: i % len(names)]:
                    times[name] += turn(of, name, given.data.resolve(), Path(work), given.steps)
            for name, found in times.items():
                low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
                spread = {"ms": f"{middle:.0f}", "q25": f"{low:.0f}", "q75": f"{high:.0f}"}
                rows.append({"study": of, "contender": name, **spread, "steps": len(found)})
                print(*rows[-1].values(), flush=True)
            write_csv(given.out, facts(), COLUMNS, rows)


if __name__ == "__main__":
    main()

"""The commands `dgmn fit | validate | test`: a thin layer over LightningCLI."""

import logging
import os
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from dgmn.errors import InputError, first_line

try:
    import lightning as L
    import torch.distributed as dist
    import yaml
    from jsonargparse import ArgumentError
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from lightning.pytorch.trainer.states import TrainerStatus
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.rank_zero import rank_zero_only
except ImportError as error:
    raise InputError(f"training needs more packages: pip install 'dgmn[train]' ({error})") from error

from typing_extensions import override

from dgmn.report import say
from dgmn.run_summary import facts_of, write_summary
from dgmn.training.callbacks import BestTables, EpochSeed, LastEvaluation, ProgressLines
from dgmn.training.checkpoint import AtomicCheckpointIO, BestCheckpoint
from dgmn.training.class_paths import causes, explained, only_classes
from dgmn.training.options import RunOptions
from dgmn.training.task import Task, describe_run
from dgmn_base.options import trusted_packages
from dgmn_base.recipes import find_recipe, package_folder, read_recipe, with_recipes
from dgmn_base.runs import alone_in, checkpoint_of
from dgmn_base.terminal import counted, format_table


class _SaveConfig(SaveConfigCallback):
    """Writes the configuration of a training after its checkpoint is accepted: a refused run leaves no file."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


class DgmnCLI(LightningCLI):
    """Runs a command; every run has one folder, `trainer.default_root_dir`: checkpoints/, logs/ and tensorboard/.

    Args:
        arguments: the command and its options.
        run: whether to run it.
        told: the same as the user wrote it.
    """

    def __init__(self, arguments: list[str] | dict[str, Any], run: bool = True, told: Sequence[str] = ()) -> None:
        self._told = list(told)
        super().__init__(
            Task,
            L.LightningDataModule,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("exit_on_error", False)
        return super().init_parser(**kwargs)

    @property
    def root(self) -> Path:
        return Path(self._get(self.config, "trainer").default_root_dir or "runs/unnamed")

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @override
    def _parse_ckpt_path(self) -> None:
        """Does nothing: the network comes from the recipe, never from a class path in a checkpoint."""

    @override
    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything must be in 0..{2**32 - 1}, got {seed}")
        super()._set_seed()

    @staticmethod
    def _check_trainer(trainer: Any) -> None:
        """Refuses numbers that Lightning takes, or refuses late."""
        for name, least in {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "max_epochs": -1}.items():
            value = trainer.get(name)
            if value is not None and not least <= value < float("inf"):
                raise InputError(f"trainer.{name} must be at least {least}, got {value}")

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        options = self.config[self.subcommand]
        self._check_trainer(options.trainer)
        asked = options.ckpt_path
        path = checkpoint_of(self.subcommand, asked, self.root)
        options.ckpt_path = None if path is None else str(path)
        if path is None and asked is not None:
            say(f"{self.root} has no checkpoint yet: starting from the beginning")
        if path is None and self.subcommand != "fit" and not self._starts_from_weights(options):
            raise InputError(f"dgmn {self.subcommand} needs weights: --ckpt_path best, or --model.checkpoint FILE")
        if path is not None:
            self._forget_the_start(options)

    @staticmethod
    def _forget_the_start(options: Any) -> None:
        """Removes the weights that the run started from: its checkpoint replaces them, and their file may be gone."""
        arguments = options.model.get("init_args") or {}
        if arguments.get("checkpoint"):
            arguments["checkpoint"] = None
        if (arguments.get("model_args") or {}).get("pretrained"):
            arguments["model_args"] = {k: v for k, v in arguments["model_args"].items() if k != "pretrained"}

    @staticmethod
    def _starts_from_weights(options: Any) -> bool:
        arguments = options.model.get("init_args") or {}
        return bool(arguments.get("checkpoint") or (arguments.get("model_args") or {}).get("pretrained"))

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self._get(self.config_init, "trainer")
        monitor, mode = self.model.monitor
        self._best_tables = BestTables()
        every_epoch: Any = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        # With validations inside of epochs, the last of an epoch need not be its best.
        inside = given.get("val_check_interval") not in (None, 1.0)
        best = {**every_epoch, "save_on_train_epoch_end": not inside}
        self._best = BestCheckpoint(self.checkpoints, "best", monitor=monitor, mode=mode, **best)
        callbacks = [
            *(given.get("callbacks") or []),
            EpochSeed(int(self._get(self.config, "seed_everything"))),
            RunOptions({name: self._get(self.config, name).as_dict() for name in ("model", "data")}),
            LastEvaluation(),
            self._best_tables,
            self._best,
            # A separate callback: with save_last, Lightning keeps the last epoch only if it is also the best.
            ModelCheckpoint(self.checkpoints, "last", **every_epoch),
        ]
        loggers: Any = given.get("logger")
        if loggers is None:
            # A resumed run writes its logs beside those of its first part, never over them.
            loggers = [CSVLogger(self.root, name="logs"), TensorBoardLogger(self.root, name="tensorboard", version="")]
            callbacks.append(LearningRateMonitor("step"))
        bar = given.get("enable_progress_bar")
        if bar is None and not sys.stdout.isatty():
            bar = False
            callbacks.append(ProgressLines(monitor))
        defaults = {
            "default_root_dir": self.root,
            "logger": loggers,
            "callbacks": callbacks,
            "plugins": [*(given.get("plugins") or []), AtomicCheckpointIO()],
            "enable_progress_bar": bar,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,  # the data is checked already
            "use_distributed_sampler": False,  # the data module divides the images among the processes
        }
        try:
            trainer: L.Trainer = super().instantiate_trainer(**defaults, **kwargs)
        except (TypeError, ValueError) as error:  # of a device, for instance
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if self.subcommand == "fit" and given.get("sync_batchnorm") and on_cpu and trainer.world_size > 1:
            raise InputError(
                "trainer.sync_batchnorm: PyTorch cannot synchronise the batch norms of processes on the CPU: give "
                "--trainer.sync_batchnorm false; each process then normalises with its own images"
            )
        return trainer

    @property
    def _logs(self) -> Path | None:
        """The folder of this command's logs."""
        return next((Path(log.log_dir) for log in self.trainer.loggers if isinstance(log, CSVLogger)), None)

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Leaves no empty folder of logs behind, for instance where the data is refused."""
        try:
            yield
        finally:
            if self.trainer.is_global_zero and self._logs is not None:
                with suppress(OSError):  # it holds something
                    self._logs.rmdir()

    def fit(self, **kwargs: Any) -> None:
        network = self.model.model
        parameters, trained = (
            sum(p.numel() for p in network.parameters() if every or p.requires_grad) for every in (True, False)
        )
        scratch = self.model.start is None and kwargs.get("ckpt_path") is None
        some = "" if trained == parameters else f", {trained / 1e6:.2f} M of them trained"
        told = f"{type(network).__name__} with {parameters / 1e6:.2f} M parameters{some}"
        say(f"{told}{', from random weights' if scratch else ''}; this run's folder: {self.root}")
        start = time.monotonic()
        try:
            with alone_in(self.root) if rank_zero_only.rank == 0 else nullcontext():
                checkpoint_of("fit", kwargs.get("ckpt_path"), self.root)  # again: another run may have just ended
                for partial in self.checkpoints.glob(".*.partial"):  # of a run that was killed while it wrote
                    partial.unlink(missing_ok=True)
                with self._logging():
                    self.trainer.fit(**kwargs)
        except SystemExit:  # Lightning ends like this after Ctrl-C
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            if (self.checkpoints / "last.ckpt").exists():
                say(f"The last finished epoch is kept in {self.checkpoints}. Continue with --ckpt_path last")
            raise KeyboardInterrupt from None
        if not self.trainer.logged_metrics:
            done = counted(self.trainer.current_epoch, "epoch")
            limits = "raise --trainer.max_epochs, or --trainer.max_time or --model.patience if they ended it"
            if 0 <= self.trainer.max_steps <= self.trainer.global_step:
                done, limits = counted(self.trainer.global_step, "step"), "raise --trainer.max_steps, or leave it out"
            say(f"Nothing to train: the run has done {done}; {limits}")
        elif self.trainer.is_global_zero:
            self._report(f"after {counted(self.trainer.current_epoch, 'epoch')}")
            best = self._best.best_model_score
            if best is not None:
                print(f"best {self.model.monitor[0]}: {float(best):.4f}, in {self.checkpoints / 'best.ckpt'}")
            if self.trainer.fast_dev_run:  # it leaves no logs and no checkpoints
                return
            try:
                seconds = time.monotonic() - start
                facts = facts_of(self.trainer, best, self._best_tables, self._told, told, seconds, self._logs)
                print(f"summary: {write_summary(self.root, facts)}")
            except Exception as error:  # the training is done, and no page about it may make it fail
                print(f"no summary of the run: {error}")

    def _needs_all_weights(self, ckpt_path: Any) -> None:
        if ckpt_path is None and not self.model.filled:
            raise InputError(
                "--model.checkpoint filled only a part of the network, the rest is new: there is nothing to evaluate; "
                "give a run's checkpoint as --ckpt_path, or weights of exactly this network"
            )

    def validate(self, **kwargs: Any) -> None:
        self._needs_all_weights(kwargs.get("ckpt_path"))
        with self._logging():
            self.trainer.validate(**{**kwargs, "verbose": False})
        self._report("validation")

    def test(self, **kwargs: Any) -> None:
        self._needs_all_weights(kwargs.get("ckpt_path"))
        with self._logging():
            self.trainer.test(**{**kwargs, "verbose": False})
        self._report("test")

    def _report(self, title: str) -> None:
        if not self.trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in self.trainer.logged_metrics.items() if "/" in k and not k.endswith("_step")}
        print(f"\n{format_table((title, ''), [(name, f'{value:.4f}') for name, value in sorted(metrics.items())])}")
        for header, rows in self.model.tables():
            print(f"\n{format_table(header, rows)}")

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        # Reading a checkpoint never executes code, so the option weights_only has nothing to choose.
        return {name: skip | {"weights_only"} for name, skip in commands.items() if name != "predict"}


def run_training(command: str, arguments: Sequence[str]) -> int:
    """Runs `dgmn fit | validate | test` with these arguments."""
    _run(command, arguments)
    return 0


def evaluate(arguments: Sequence[str]) -> tuple[dict[str, float], int]:
    """Runs `dgmn validate` with these arguments.

    Returns:
        Its metrics, in all processes but the first none; and how many images they are of.
    """
    cli = _run("validate", arguments)
    trainer, data = cli.trainer, cli.datamodule
    found = {name: float(value) for name, value in trainer.logged_metrics.items()} if trainer.is_global_zero else {}
    most = int(sum(trainer.num_val_batches)) * (data.eval_batch_size or data.batch_size) * trainer.world_size
    return found, min(most, data.validation_images)


def _run(command: str, arguments: Sequence[str]) -> DgmnCLI:
    _quieten()
    package = f"{package_folder()}{os.sep}"  # recipes that come with dgmn are told as the user names them
    told = [command, *(argument.replace(package, "") for argument in arguments)]
    trusted, arguments = trusted_packages(arguments)
    try:
        with only_classes(trusted):
            return DgmnCLI([command, *with_recipes(arguments)], told=told)
    except Exception as error:
        raise _explained(error) from error


def describe_recipe(recipe: str, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """The description that a checkpoint of this recipe would store; nothing is trained."""
    _quieten()
    try:
        with only_classes(trusted):
            cli = DgmnCLI(_sections(recipe, ("model", "data")), run=False)
    except Exception as error:
        raise _explained(error) from error
    return describe_run(cli.model, cli.datamodule)


def make_data(recipes: Sequence[str], overrides: Sequence[str], trusted: Sequence[str] = ()) -> L.LightningDataModule:
    """Makes the data module of recipes and command-line options, without a network or a trainer."""
    _quieten()
    try:
        with only_classes(trusted):
            parser = LightningArgumentParser(exit_on_error=False)
            parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
            sections = [section for recipe in recipes for section in _sections(recipe, ("data",))]
            data: L.LightningDataModule = parser.instantiate_classes(parser.parse_args([*sections, *overrides])).data
    except Exception as error:
        raise _explained(error) from error
    return data


def _sections(recipe: str, names: Sequence[str]) -> list[str]:
    """Sections of a recipe as options, so that they are parsed like any other."""
    content = read_recipe(find_recipe(recipe))
    if not all(isinstance(content.get(name), dict) for name in names):
        sections = f"section{'s' if len(names) > 1 else ''} {' and '.join(names)}"
        raise InputError(f"-c {recipe}: a recipe with the {sections} is needed")
    return [f"--{name}={yaml.safe_dump(content[name])}" for name in names]


def _explained(error: Exception) -> Exception:
    """Reduces a parser's error to what helps the user: our own error inside it, or the useful lines of its message."""
    refused = explained(error)
    if refused is not None:
        return refused
    for cause in causes(error):  # the parser wraps what constructors raise
        if isinstance(cause, InputError | OSError):
            return cause
        if "gpu backend found" in str(cause):
            return InputError("trainer.accelerator gpu: this machine has no GPU that PyTorch can use; give cpu or auto")
        if isinstance(cause, MisconfigurationException | yaml.YAMLError):
            return InputError(" ".join(str(cause).split()))
        if "Expected more than 1 value per channel" in str(cause):
            return InputError(
                "batch norm needs more than one value of every channel: give a --data.batch_size of at least 2, or "
                "larger images"
            )
        if isinstance(cause, dist.DistError) or (isinstance(cause, RuntimeError) and "/gloo/" in str(cause)):
            words = re.sub(r"\[[^]]*/gloo/[^]]*\] *", "", first_line(cause)).partition(". ")[0]
            return InputError(
                "the processes of this run lost each other: one ended, or cannot be reached "
                f"({textwrap.shorten(words, 200)}). If the run has finished an epoch, continue with --ckpt_path last"
            )
        if isinstance(cause, UnicodeEncodeError):  # of jsonargparse or TensorBoard
            return InputError(f"training takes options and folders in UTF-8 only, got {cause.object!a}")
        if "DataLoader worker" in str(cause):
            return InputError(
                "a process that loads images was killed, probably because the memory was full: give fewer "
                f"--data.num_workers or a smaller --data.batch_size ({' '.join(str(cause).split())})"
            )
    if not isinstance(error, ArgumentError):
        value = re.search(r"argument after \*\* must be a mapping, not (\w+)(?:.|\n)*Given value: (.*)", str(error))
        if value is None:
            return error
        given = textwrap.shorten(value[2], 400)
        return InputError(f"an option of these must be a section with options of its own, not {value[1]}: {given}")
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_NOISE) and line != "Expected a <class 'NoneType'>"]
    return InputError(": ".join(textwrap.shorten(line.rstrip(":"), 300) for line in lines))


# Beginnings of lines of the parser's message that do not help.
_NOISE = (
    "Expected a path but",
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value: NestedArg",
)


def _quieten() -> None:
    """Silences adverts and advice that a user of a recipe cannot act on."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It tells that it kills all processes because one has ended.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    for message in (
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*smaller than the logging interval.*",
        r"You're using the WeightAveraging callback, but loading a checkpoint outside.*",
        r"Found \d+ module\(s\) in eval mode at the start of training.*",  # frozen batch norms
        r"LightningCLI's args parameter is intended.*",
        r"The dirpath has changed from .*",
        r".*ModelCheckpoint\(monitor='val/.*could not find the monitored key.*",  # before the first validation
        r"Your `IterableDataset` has `__len__` defined.*",  # shards, of which every worker reads its own
        r"You're resuming from a checkpoint that ended before the epoch ended.*",  # see RestOfEpoch
        r".*`isinstance\(treespec, LeafSpec\)`.*",
    ):
        warnings.filterwarnings("ignore", message)

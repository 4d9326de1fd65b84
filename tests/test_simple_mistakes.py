"""Help, lists and simple mistakes are answered at once, without torch, timm or lightning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dgmn_base.errors import InputError, did_you_mean
from dgmn_base.options import checked_arguments
from dgmn_base.recipes import find_recipe, package_folder, recipe_names
from dgmn_cli import run

DIGITS = "recipes/classification/digits.yaml"
SCENES = "recipes/segmentation/scenes.yaml"

# Runs the command in a Python that stops if a heavy package is imported.
_WITHOUT = """
import importlib.abc, sys
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "timm", "lightning", "numpy", "PIL", "dgmn"):
            raise SystemExit(f"{name} was imported")
sys.meta_path.insert(0, Nothing())
from dgmn_cli import main
main()
"""


def without_torch(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(package_folder().parent)}
    command = [sys.executable, "-c", _WITHOUT, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    (folder / "photo.jpg").touch()
    (folder / "a_file").touch()
    (folder / "broken.yaml").write_text("data: [1, 2")
    (folder / "data/train").mkdir(parents=True)
    (folder / "run/checkpoints").mkdir(parents=True)
    (folder / "run/checkpoints/last.ckpt").touch()
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Start with: dgmn quickstart"),
        (["--version"], "dgmn 0."),
        (["fit", "--help"], DIGITS),
        (["predict", "--help"], "--pictures FOLDER"),
        (["zoo"], "mask_rcnn_dgmn2_tiny"),
        (["zoo", "--task", "classification"], "83.3"),
    ],
)
def test_answers(arguments, expected, folder):
    done = without_torch(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bnch"], "no command 'bnch', did you mean bench?"),
        (["train"], "no command 'train', did you mean fit?"),
        (["fit"], None),
        (["fit", "--data.root", "x"], "give a recipe: dgmn fit -c RECIPE"),
        (["fit", "-c", "digts.yaml"], "no such recipe, did you mean recipes/classification/digits.yaml?"),
        (["fit", "-c", "broken.yaml"], "-c broken.yaml: while parsing"),
        (["fit", "-c", DIGITS, "--data.rot", "x"], "--data.rot: no such option, did you mean --data.root?"),
        (["fit", "-c", DIGITS, "--modle.model", "x"], "--modle.model: no such option, did you mean --model?"),
        (["fit", "-c", DIGITS, "--model.num_clases=3"], "did you mean --model.num_classes?"),
        (["fit", "-c", DIGITS, "--trainer.max_epoch", "3"], "--trainer.max_epochs"),
        (["fit", "-c", SCENES, "--data.augmentation.crp", "3"], "did you mean --data.augmentation.crop?"),
        (["fit", "-c", SCENES, "--model.zzz", "3"], "--model.zzz: no such option; --help-all explains every option"),
        (["fit", "-c", DIGITS, "--data.root", "nowhere"], "data.root nowhere: there is no such folder"),
        (["fit", "-c", DIGITS, "--model.checkpoint", "none.pth"], "--model.checkpoint none.pth: no such file"),
        (["fit", "-c", DIGITS, "--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt: no such file"),
        (["fit", "-c", DIGITS, "--trainer.default_root_dir", "run"], "run already holds a run: continue it with"),
        (["validate", "-c", DIGITS, "--ckpt_path", "best"], "--ckpt_path best: there is no runs/digits/checkpoints"),
        (["test", "-c", DIGITS, "--ckpt_path=none"], "--ckpt_path none: no such file"),
        (["validate-data", "-c", "nope"], "no such recipe"),
        (["validate-data", "-c", SCENES, "--data.rot=x"], "did you mean --data.root?"),
        (["predict", "none.jpg", "--ckpt_path", "x"], "none.jpg: no such file, folder or glob"),
        (["predict", "photo.jpg", "--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt: no such file"),
        (["predict", "photo.jpg"], "give --ckpt_path FILE, a run's folder or checkpoint, or --model NAME"),
        (["predict", "photo.jpg", "--model", "dgmn2_tny"], "did you mean dgmn2_tiny?"),
        (["predict", "photo.jpg", "--model", "dgmn2_tiny", "--score", "0"], "--score is for detection"),
        (["predict", "photo.jpg", "--model", "dgmn2_tiny", "--pictrues", "x"], "did you mean --pictures?"),
        (["predict", "photo.jpg", "--model", "dgmn2_tiny", "--pictures", "a_file"], "this is a file, give a folder"),
        (["predict", "photo.jpg", "--model", "dgmn2_tiny", "--json", "data"], "this is a folder, give a file"),
        (["zoo", "download", "dgmn2_tny"], "did you mean dgmn2_tiny?"),
        (["zoo", "download", "dgmn2_tiny", "--file", "none.pth"], "--file none.pth: no such file"),
    ],
)
def test_mistakes(arguments, expected, folder):
    done = without_torch(*arguments, folder=folder)
    if expected is None:
        assert done.returncode == 0
        return
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("dgmn: error: ")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_right_is_not_refused(few_digits, monkeypatch, tmp_path):
    """Every option of a recipe passes, in all ways to write it. So do options of other people's classes."""
    monkeypatch.chdir(tmp_path)
    for recipe in recipe_names():
        content = yaml.safe_load(find_recipe(recipe).read_text())
        options = [f"--{path}=1" for path in _paths({key: content[key] for key in ("data", "model", "trainer")})]
        checked_arguments("fit", ["-c", recipe, *options, "--print_config"])
    common = ["-c", DIGITS, "--data.root", str(few_digits)]
    for more in (
        ["--data.init_args.root", str(few_digits)],
        ["--model.optimizer.init_args.lr", "-1e-3"],
        ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
        ["--data", "other.Data", "--data.anything", "3"],
        ["--data.train=torchvision.datasets.FakeData", "--data.train.size=3"],
        ["--seed_everything", "3", "--trainer.logger", "false"],
        ["--ckpt_path", "last"],
        ["--model.checkpoint", "null"],
    ):
        assert checked_arguments("fit", [*common, *more])[2:] == [*common[2:], *more]


def _paths(content, start=""):
    for key, value in content.items():
        yield from _paths(value, f"{start}{key}.") if isinstance(value, dict) and value else [f"{start}{key}"]


def test_several_recipes_count_together(few_digits, tmp_path):
    (tmp_path / "more.yaml").write_text("data: {init_args: {root: nowhere}}")
    with pytest.raises(InputError, match=r"data\.root nowhere"):
        checked_arguments("fit", ["-c", DIGITS, "-c", str(tmp_path / "more.yaml")])
    checked_arguments("fit", ["-c", DIGITS, "-c", str(tmp_path / "more.yaml"), "--data.root", str(few_digits)])
    with pytest.raises(InputError, match=r"--data\.rot"):  # the class comes from the first recipe
        checked_arguments("fit", ["-c", DIGITS, "-c", str(tmp_path / "more.yaml"), "--data.rot", "x"])


def test_suggestions():
    assert did_you_mean("modle", ["model", "data"]) == ", did you mean model?"
    assert did_you_mean("crop", ["crops", "crop_"], before="--") == ", did you mean --crops or --crop_?"
    assert did_you_mean("zzz", ["model"], "; one of model") == "; one of model"
    assert did_you_mean("", []) == ""


def test_the_help_of_every_command(capsys):
    commands = ("predict", "zoo", "complexity", "quickstart", "bench", "reproduce", "validate-data", "convert-data")
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            run([command, "--help"])
        assert stop.value.code == 0
        assert f"dgmn {command}" in capsys.readouterr().out


def test_recipes_are_found_in_the_package_and_here(tmp_path, monkeypatch):
    assert find_recipe(DIGITS) == package_folder() / DIGITS
    assert find_recipe("classification/digits.yaml") == package_folder() / DIGITS
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    assert find_recipe("mine.yaml") == Path("mine.yaml")

"""The documentation: what its blocks of code name exists, and they run.

Every block says its language. One of Python or of commands runs here, or a comment directly above it says why not:

    <!-- not run: needs COCO -->

The blocks of a page run one after the other in one folder, with small data. `<!-- first: model = ... -->` is code that
runs before the block below it, for names that readers bring themselves.
"""

import ast
import os
import re
import shlex
import shutil
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from dgmn.loading import predictor_of
from dgmn.weights import find
from dgmn.weights.shared import to_safetensors
from dgmn_base.arguments import Parser
from dgmn_base.errors import InputError
from dgmn_base.options import checked_arguments
from dgmn_base.recipes import find_recipe, read_recipe
from dgmn_cli import _COMMANDS, run

ROOT = Path(__file__).parents[1]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES = [*OUTSIDE, *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
LANGUAGES = ("python", "bash", "text", "cpp", "bibtex", "yaml")
TRAININGS = ("fit", "validate", "test", "validate-data")
# `photos` of a page is a dataset of this task.
TASKS = {"docs/own_detection.md": "detection", "docs/own_segmentation.md": "segmentation"}
# What makes a training of a recipe a matter of seconds; the last of two equal options counts.
SMALL = {
    "classification": "--data.image_size 64 --trainer.limit_train_batches 1 --trainer.limit_val_batches 1",
    "detection": "--model.model_args.min_size 64 --model.model_args.max_size 96 --data.epoch_steps 1",
    "segmentation": "--data.augmentation.crop [64,64] --data.epoch_steps 1",
}
ALWAYS = "--trainer.max_epochs 1 --data.batch_size 2 --data.num_workers 0 --trainer.enable_progress_bar false"


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    reason: str | None  # why it is not run
    first: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in ("python", "bash") and self.reason is None

    def commands(self) -> list[list[str]]:
        """The words of every command of dgmn, without what is before it in the same line."""
        return list(_commands(self.text))


def _commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|()"):
                words.append("dgmn" if word == "dgmn_cli" else word)
                continue
            if "dgmn" in words and "pip" not in words:
                yield words[words.index("dgmn") + 1 :]
            words = []


def _blocks(page: str) -> Iterator[Block]:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = None
    for i, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = i
            continue
        comments = {}
        above = start - 1
        while found := re.fullmatch(r"<!-- (not run|first): (.+) -->", lines[above]):
            comments[found[1]] = found[2]
            above -= 1
        text = "\n".join(lines[start + 1 : i])
        yield Block(page, start + 1, lines[start].strip("` "), text, comments.get("not run"), comments.get("first", ""))
        start = None
    assert start is None, f"{page}:{start}: this block has no end"


BLOCKS = [block for page in PAGES for block in _blocks(page)]
RUN = {page: [b for b in BLOCKS if b.page == page and b.runs] for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_not(page: str) -> None:
    for block in BLOCKS:
        if block.page != page:
            continue
        assert block.language in LANGUAGES, f"{block}: the language must be one of {LANGUAGES}"
        if block.language == "bash" and block.reason is None:
            for line in block.text.replace("\\\n", " ").splitlines():
                assert re.match(r"dgmn |$|#", line), f"{block}: say why this is not run: {line}"
        if block.language == "python":
            _check_imports(block)


def _check_imports(block: Block) -> None:
    """What a block imports from dgmn exists, and the block is Python."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dgmn":
            module = __import__(node.module, fromlist=["*"])
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block}: {node.module} has no {alias.name}"


class _ParsedError(Exception):
    """The real parser has accepted the options."""


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_what_exists(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options and recipes, also of blocks that are not run, and scripts and extras."""
    parse, parse_known = Parser.parse_args, Parser.parse_known_args

    def only_parsed(self: Parser, arguments: list[str]) -> None:
        monkeypatch.setattr(Parser, "parse_known_args", parse_known)  # parse_args calls it
        parse(self, arguments)
        raise _ParsedError

    def only_known_parsed(self: Parser, arguments: list[str]) -> None:
        parse_known(self, arguments)
        raise _ParsedError

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for block in BLOCKS:
        if block.page != page or block.language != "bash":
            continue
        for extra in re.findall(r"(?:dgmn|\.)\[([\w,]+)\]", block.text):
            assert set(extra.split(",")) <= set(extras), f"{block}: no extra {extra}"
        for script in re.findall(r"\b(?:benchmarks|docs|tests|examples)/[\w/]+\.py", block.text):
            assert (ROOT / script).is_file(), f"{block}: no file {script}"
        for command, *arguments in block.commands():
            monkeypatch.setattr(Parser, "parse_args", only_parsed)
            monkeypatch.setattr(Parser, "parse_known_args", only_known_parsed)
            try:
                if command in TRAININGS and arguments != ["--help"]:
                    checked_arguments(command, [*arguments, "--print_config"])
                elif command in _COMMANDS:
                    with pytest.raises(_ParsedError):
                        _COMMANDS[command](arguments)
                else:
                    assert command in TRAININGS, f"{block}: no command {command}"
            except (InputError, SystemExit) as error:
                pytest.fail(f"{block}: dgmn {command} {shlex.join(arguments)}: {error}")


def _tables() -> types.ModuleType:
    spec = spec_from_file_location("tables", ROOT / "docs/scripts/tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_their_rows() -> None:
    for path, text in _tables().written().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python docs/scripts/tables.py"


def test_messages_in_troubleshooting_are_ours() -> None:
    """The first column quotes messages, and words of them are in the source."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("src/**/*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source).replace("'", '"')
    quoted = re.findall(r"^\| `([^`]+)`", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    for message in quoted:
        assert message.replace("'", '"') in source, message


@pytest.mark.parametrize("page", OUTSIDE)
def test_links_lead_somewhere(page: str) -> None:
    """Of the pages outside of docs/, which mkdocs does not check."""
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: no {target}"


# --- the blocks run ---


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of fetched weights, with chance numbers: what the pages name need not be fetched."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("dgmn2_tiny", "mask_rcnn_dgmn2_tiny", "retinanet_dgmn2_tiny", "semantic_fpn_dgmn2_tiny"):
        row = find(name)
        weights = predictor_of(row.task).published(row.builder, row.backbone, "cpu").network.state_dict()
        (folder / f"{name}.safetensors").write_bytes(to_safetensors(weights, {"model": name}))
    return folder


@pytest.fixture
def reader(tmp_path, published, small_run, few_digits, few_scenes, few_coco_scenes, monkeypatch):
    """`reader(page)`: goes to a folder with what the reader of a page has."""
    data = {"classification": few_digits, "segmentation": few_scenes, "detection": few_coco_scenes}
    runs = {"classification": "classifier", "segmentation": "semantic_fpn", "detection": "mask_rcnn"}

    def enter(page: str) -> None:
        for task, kind in runs.items():
            suffix = "" if task == "classification" else f"_{task}"
            run = small_run(kind)
            for name in (f"quickstart{suffix}/run", f"finetune{suffix}", *(("x",) if task == "detection" else ())):
                shutil.copytree(run, tmp_path / "runs" / name)
            shutil.copytree(data[task], tmp_path / f"runs/quickstart{suffix}" / ("scenes" if suffix else "digits"))
        task = TASKS.get(page, "classification")
        prepare = {"classification": _cats_and_dogs, "segmentation": _folders_of_masks, "detection": shutil.copytree}
        prepare[task](data[task], tmp_path / "photos")
        (tmp_path / "holiday").mkdir()
        for i, pixels in enumerate(load_sample_images().images):
            picture = Image.fromarray(pixels)
            picture.save(tmp_path / f"holiday/{i}.jpg")
            picture.save(tmp_path / ("street.jpg", "photo.jpg")[i])
        monkeypatch.setenv("DGMN_HOME", str(shutil.copytree(published, tmp_path / "home")))
        monkeypatch.chdir(tmp_path)

    return enter


def _cats_and_dogs(digits: Path, folder: Path) -> None:
    for split in ("train", "val", "test"):
        for digit, animal in enumerate(("cat", "dog")):
            shutil.copytree(digits / split / str(digit), folder / split / animal)


def _folders_of_masks(scenes: Path, folder: Path) -> None:
    """A dataset in Cityscapes' layout as folders of images and masks, with a class for all digits."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for image in sorted((scenes / "leftImg8bit" / split).rglob("*.png")):
            stem = image.name.removesuffix("_leftImg8bit.png")
            shutil.copy(image, folder / "images" / split / f"{stem}.png")
            with Image.open(scenes / "gtFine" / split / "scenes" / f"{stem}_gtFine_labelTrainIds.png") as mask:
                mask.point(lambda value: min(value, 1)).save(folder / "masks" / split / f"{stem}.png")
    (folder / "classes.txt").write_text("photo\ndigit\n")


def _run(arguments: list[str]) -> None:
    """Runs a command of a page; a training is made small, and writes over an earlier run."""
    command = arguments[0]
    if command in ("fit", "validate", "test"):
        recipe = find_recipe(arguments[arguments.index("-c") + 1])
        if command == "fit" and "--ckpt_path" not in arguments:
            root = read_recipe(recipe)["trainer"]["default_root_dir"]
            if "--trainer.default_root_dir" in arguments:
                root = arguments[arguments.index("--trainer.default_root_dir") + 1]
            shutil.rmtree(root, ignore_errors=True)
        arguments = [*arguments, *shlex.split(SMALL[recipe.parent.name]), *shlex.split(ALWAYS)]
    code = run(arguments)
    assert code == 0, f"dgmn {shlex.join(arguments)} ended with {code}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]])
def test_blocks_run(page: str, reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader(page)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    torch.manual_seed(0)
    for block in RUN[page]:
        try:
            exec(compile(block.first, f"before {block}", "exec"), module.__dict__)
            if block.language == "python":
                exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), module.__dict__)
            for arguments in block.commands() if block.language == "bash" else ():
                _run(arguments)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {error}") from error
    assert os.listdir()

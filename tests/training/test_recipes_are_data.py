"""A recipe is data: whatever it names, reading it runs no code of its author's choice."""

import itertools
import json
import os

import pytest
import torch
import yaml
from safetensors.torch import save_file

from dgmn.cli import describe_recipe
from dgmn.errors import InputError
from dgmn_base.recipes import find_recipe, read_recipe, recipe_names
from dgmn_cli import run

DIGITS = "recipes/classification/digits.yaml"

# Importing this module, calling its function and making its classes leave a trace.
_EVIL = """
import pathlib
import lightning, torch
def trace(*args, **kwargs):
    pathlib.Path({trace!r}).touch()
trace()
class Callback(lightning.Callback):
    def __init__(self):
        trace()
class AdamW(torch.optim.AdamW):
    def __init__(self, *args, **kwargs):
        trace()
        super().__init__(*args, **kwargs)
"""

# What is named, and what the message says is accepted.
_OUTSIDE = "classes of dgmn, lightning, timm, torch, torchvision are accepted"
_NO_FUNCTION = "a class is accepted, never a function"
ATTACKS = {
    "os.system": _OUTSIDE,
    "subprocess.Popen": _OUTSIDE,
    "builtins.exec": _OUTSIDE,
    "evil.trace": _OUTSIDE,
    "evil.Callback": _OUTSIDE,
    "evil.AdamW": _OUTSIDE,
    "torch.os.system": _NO_FUNCTION,
    "timm.models._hub.os.system": _NO_FUNCTION,
    "torch.hub.load": _NO_FUNCTION,
    "torch.jit.load": _NO_FUNCTION,
    "torch.load": _NO_FUNCTION,
    "torch.ops.load_library": _NO_FUNCTION,
    "torch.storage.io.BytesIO": _OUTSIDE,
    "torch.nn.Linear": "a subclass of",
    "lightning.Trainer": "a subclass of",
}
# Where a recipe can name a class, and the sections before it that make the place exist.
PLACES = {
    "model": {},
    "data": {},
    "model.optimizer": {},
    "model.schedule": {},
    "trainer.callbacks": {},
    "trainer.logger": {},
    "data.train": {},
}


@pytest.fixture
def trace(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    (tmp_path / "evil.py").write_text(_EVIL.format(trace=str(trace)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return trace


def _spec(named, trace):
    arguments = {"os.system": {"command": f"touch {trace}"}, "subprocess.Popen": {"args": ["touch", str(trace)]}}
    return {"class_path": named, "init_args": arguments.get(named, {})}


def _recipe(place, value):
    """The recipe of digits with a value at this place."""
    content = read_recipe(find_recipe(DIGITS))
    content["data"]["init_args"]["root"] = "photos"
    section, _, name = place.partition(".")
    if not name:
        content[section] = value
    else:
        (content[section] if section == "trainer" else content[section]["init_args"])[name] = value
    return content


def _written(content, name="recipe.yaml"):
    with open(name, "w") as file:
        yaml.safe_dump(content, file)
    return name


def _in_a_recipe(place, named, trace):
    value = _spec(named, trace)
    return ["fit", "-c", _written(_recipe(place, [value] if place == "trainer.callbacks" else value))]


def _as_a_name_in_a_recipe(place, named, trace):
    return ["fit", "-c", _written(_recipe(place, named))]


def _as_an_option(place, named, trace):
    return ["fit", "-c", DIGITS, "--data.root=photos", f"--{place}", named]


def _as_an_addition(place, named, trace):
    return ["fit", "-c", DIGITS, "--data.root=photos", f"--{place}+={named}"]


def _as_a_class_path(place, named, trace):
    return ["fit", "-c", DIGITS, "--data.root=photos", f"--{place}.class_path={named}"]


def _as_json(place, named, trace):
    return ["fit", "-c", DIGITS, "--data.root=photos", f"--{place}", json.dumps(_spec(named, trace))]


def _in_a_second_file(place, named, trace):
    return ["fit", "-c", DIGITS, "--data.root=photos", f"--{place}", _written(_spec(named, trace), "second.yaml")]


def _to_predict(place, named, trace):
    save_file({"weight": torch.ones(1)}, "weights.safetensors")
    open("photo.jpg", "w").close()
    return ["predict", "photo.jpg", "--ckpt_path", "weights.safetensors", *_in_a_recipe(place, named, trace)[1:]]


def _to_check_data(place, named, trace):
    return ["validate-data", *_in_a_recipe(place, named, trace)[1:]]


WAYS = {
    _in_a_recipe: PLACES,
    _as_a_name_in_a_recipe: PLACES,
    _as_an_option: PLACES,
    _as_an_addition: ["trainer.callbacks"],
    _as_a_class_path: ["model", "data", "model.optimizer", "model.schedule", "data.train"],
    _as_json: PLACES,
    _in_a_second_file: PLACES,
    _to_predict: ["model", "data", "model.optimizer", "model.schedule", "data.train"],
    _to_check_data: ["data", "data.train"],
}


# Every way at every place, each with another attack.
CASES = [
    pytest.param(way, place, named, id=f"{way.__name__.strip('_')}-{place}-{named}")
    for (way, place), named in zip(
        ((way, place) for way, places in WAYS.items() for place in places), itertools.cycle(ATTACKS), strict=False
    )
]


@pytest.mark.parametrize(("way", "place", "named"), CASES)
def test_nothing_that_a_recipe_names_is_run(way, place, named, trace, capsys):
    assert run(way(place, named, trace)) == 2
    assert not trace.exists()
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert f"{place.partition('.')[0]}" in line
    assert f"{named} is refused" in line or "io.BytesIO is refused" in line
    assert ATTACKS[named] in line


def test_the_message_names_the_place(trace, capsys):
    for way, at, named, place in [
        (_in_a_recipe, "model.optimizer", "evil.AdamW", "model.optimizer"),
        (_in_a_recipe, "model.optimizer", "torch.hub.load", "model.init_args.optimizer.class_path"),
        (_as_an_option, "trainer.logger", "evil.Callback", "trainer.logger"),
        (_to_predict, "model.optimizer", "evil.AdamW", "model.optimizer"),
    ]:
        assert run(way(at, named, trace)) == 2
        assert capsys.readouterr().err.startswith(f"dgmn: error: {place}: {named} is refused: ")


def test_what_the_parser_would_call_later(trace, capsys):
    """Functions of accepted packages, at the places of a dataset that take anything that can be called."""
    dataset = ["--data.train=torchvision.datasets.ImageFolder", "--data.train.root=photos"]
    for name in ("loader", "transform"):
        assert run(["fit", "-c", DIGITS, "--data.root=photos", *dataset, f"--data.train.{name}=torch.load"]) == 2
        assert f"torch.load is refused: {_NO_FUNCTION}" in capsys.readouterr().err


def test_values_of_a_network_stay_values(trace, capsys):
    argument = f"{{x: {json.dumps(_spec('subprocess.Popen', trace))}}}"
    assert run(["fit", "-c", DIGITS, "--data.root=photos", f"--model.model_args={argument}"]) == 2
    assert not trace.exists()


def test_trusted_code_is_run(trace, tmp_path, capsys):
    """But it must still be of the type that its place has, and Python's own modules cannot be trusted."""
    arguments = _in_a_recipe("trainer.callbacks", "evil.Callback", trace)
    assert run(arguments) == 2
    assert "if you trust the code of evil, add --trust-code evil" in capsys.readouterr().err
    with pytest.raises(InputError, match="trust-code evil"):
        describe_recipe(_in_a_recipe("model.optimizer", "evil.AdamW", trace)[2])
    assert not trace.exists()
    assert describe_recipe("recipe.yaml", ["evil"])["task"] == "classification"
    assert trace.exists()
    assert run([*arguments, "--trust-code", "evil"]) == 2  # there are no images
    assert "refused" not in capsys.readouterr().err
    for named, message in {"evil.AdamW": "a subclass of Callback", "evil.trace": _NO_FUNCTION}.items():
        assert run([*_in_a_recipe("trainer.callbacks", named, trace), "--trust-code=evil"]) == 2
        assert message in capsys.readouterr().err
    assert run([*arguments, "--trust-code", "os"]) == 2
    assert "--trust-code os: give the name of a package that is not a part of Python" in capsys.readouterr().err
    assert run(arguments) == 2  # trust ends with the command
    assert "--trust-code evil" in capsys.readouterr().err


_BOMB = "\n".join(
    f"{name}: &{name} [{', '.join([before] * 9)}]"
    for before, name in zip(("1", "*a", "*b", "*c", "*d", "*e", "*f", "*g", "*h"), "abcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_BOMB, "at most 100000 values"),
        ("a: &a [*a]", "at most 100000 values"),
        ("a: " + "[" * 60 + "]" * 60, "at most 50 deep"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "at most 50 deep"),
        ("\n".join(" " * i + "a:" for i in range(60)), "at most 50 deep"),
        ("a: " + "x" * 2**21, "at most 1048576 characters"),
        ("- a\n- b", "a recipe has sections such as model and data"),
        ("1: a", "a recipe has sections such as model and data"),
        ("info: {a: 1}", "a recipe has sections such as model and data, got {'info': {'a': 1}}"),
        ("text", "a recipe has sections such as model and data"),
        ("a: !!python/object/apply:os.system [touch trace]", "could not determine a constructor"),
        ("a: " + "1" * 5000, "digits"),
    ],
)
def test_size_and_form_of_recipes(text, message, trace, capsys):
    with open("recipe.yaml", "w") as file:
        file.write(text)
    commands = [["fit"], ["validate-data"], ["predict", "photo.jpg", "--ckpt_path", "weights.safetensors"]]
    save_file({"weight": torch.ones(1)}, "weights.safetensors")
    open("photo.jpg", "w").close()
    for command in commands:
        assert run([*command, "-c", "recipe.yaml"]) == 2
        line = capsys.readouterr().err
        assert len(line.splitlines()) == 1
        assert "-c recipe.yaml: " in line
        assert message in line
    assert not trace.exists()
    if "a recipe has sections" not in message and len(text) < 2**17:
        assert run(["fit", "-c", DIGITS, "--data.root=photos", f"--model.model_args={text}"]) == 2
        line = capsys.readouterr().err
        assert len(line.splitlines()) == 1
        assert len(line) < 1000


def test_the_configuration_of_a_run_is_a_recipe(small_run, tmp_path):
    """A run writes all values of its classes into its config.yaml, among them functions."""
    run_of = small_run("classifier")
    (config,) = run_of.glob("logs/*/config.yaml")
    assert describe_recipe(str(config))["task"] == "classification"
    content = read_recipe(config)
    dataset = {"class_path": "torchvision.datasets.ImageFolder", "init_args": {"root": str(tmp_path)}}
    dataset["init_args"]["loader"] = "torchvision.datasets.folder.default_loader"
    (tmp_path / "a").mkdir()
    torch.save(0, tmp_path / "a/0.jpg")
    content["data"]["init_args"] |= {"root": None, "train": dataset, "val": dataset}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert describe_recipe(str(tmp_path / "config.yaml"))["classes"] == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_name_what_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("photos")
    assert read_recipe(find_recipe(name))["model"]["class_path"].startswith("dgmn.")
    with pytest.raises(SystemExit) as stop:
        run(["fit", "-c", name, "--data.root=photos", "--print_config"])
    assert stop.value.code == 0

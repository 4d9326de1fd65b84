"""The rows of the paper's tables: their costs, and the commands that train them."""

import json
import re
import shlex

import pytest
import timm
import torch
import yaml

from dgmn.complexity import count
from dgmn.detection import mask_rcnn
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.layers import DGMN
from dgmn.models.build import build_named
from dgmn.paper_tables import architecture, count_row
from dgmn.segmentation import BUILDERS as SEGMENTERS
from dgmn_base.paper import ARCHITECTURE, TABLES, entries_of
from dgmn_base.paper.commands import options_of
from dgmn_base.recipes import find_recipe, recipe_names
from dgmn_cli import run

from sizes import every_size

NO_NAME = ("+ Deformable Message Passing", "the same without walks (the paper's cost)")  # have DGMN modules, too
FIRST_PAPER = {2, 3, 4, 5, 13, 14, 15, 16, 17}
ENTRIES = [entry for number in TABLES for entry in entries_of(number) if not entry.row.missing]


def of_each(entries, fast):
    """A parameter for each entry; those that `fast` does not choose are slow."""
    return [pytest.param(e, id=f"{e.number}-{e.name}", marks=[pytest.mark.slow] * (not fast(e))) for e in entries]


def printed(number, capsys):
    """The table as rows of cells."""
    assert run(["complexity", "--table", str(number)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("---"))
    cells = [re.split(r"  +", line.strip()) for line in lines[first + 1 : first + 1 + len(TABLES[number].rows)]]
    return {name.strip(): rest for name, *rest in cells}


@pytest.mark.slow
def test_table_2(capsys):
    """Parameters and multiply-adds that modules add to the network agree with the paper, where it names their parts."""
    rows = printed(2, capsys)
    assert list(rows) == [row.name.strip() for row in TABLES[2].rows]
    exact = ("+ DGMN w/ DA, rate 1", "+ DGMN w/ DA+DW, rate 1", "the same without walks (the paper's cost)")
    for name, tolerance in [*((name, 0.01) for name in exact), ("+ Non-local", 0.02), ("+ ASPP", 0.04)]:
        params, paper_params, gmacs, paper_gmacs = map(float, rows[name][:4])
        assert params == pytest.approx(paper_params, rel=tolerance), name
        assert gmacs == pytest.approx(paper_gmacs, rel=tolerance), name
    # The paper's figures leave out the convolution that predicts offsets and masks.
    params, paper_params, gmacs, paper_gmacs = map(float, rows["+ Deformable"][:4])
    offsets = 27 * 9 * 512
    assert params == pytest.approx(paper_params + offsets / 1e6, abs=0.01)
    assert gmacs == pytest.approx(paper_gmacs + offsets * 97 * 97 / 1e9, rel=0.01)
    # The paper's figures for five rates leave out 18 channels of a 3x3 convolution for each rate.
    walks = float(rows["+ DGMN w/ DA+DW+DS, rates 1 6 12 24 36"][0]) - float(rows[exact[2]][0])
    assert walks == pytest.approx(5 * 18 * 9 * 512 / 1e6, abs=0.01)


@pytest.mark.parametrize(
    ("backbone", "module", "at", "millions"),
    [
        pytest.param("dgmn_resnet50", "dgmn", "c4_c5", 51.1, marks=pytest.mark.slow),
        ("dgmn_resnet101", "none", "c5", 63.1),
    ],
)
def test_trained_parameters_of_section_5_3(backbone, module, at, millions):
    """The numbers agree to the last digit with stem, first stage and norms frozen, as is usual on COCO."""
    frozen = {"frozen_norms": True, "frozen_stages": 1}
    with torch.device("meta"):
        model = mask_rcnn(backbone, backbone_args={"module": module, "at": at, **frozen})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 1) == millions
    assert count(model, (64, 64)).trained_params == trained


@pytest.mark.slow
def test_more_modules_cost_more(capsys):
    rows = printed(15, capsys)
    params = [float(cells[0]) for cells in rows.values()]
    gmacs = [float(cells[1]) for cells in rows.values()]
    assert params[0] == min(params)
    assert gmacs[0] == min(gmacs)
    assert params[1] < params[2] < params[5]  # without walks; with walks; with walks and weights
    assert params[3] < params[4] < params[5]  # two groups, four groups, one rate more


@pytest.mark.parametrize(
    "entry",
    of_each(
        [entry for entry in ENTRIES if entry.row.cost and entry.close != (None, None)],
        lambda entry: entry.name in ("dgmn2_tiny", "table6_resnet18", "table10_sparse_rcnn_resnet50"),
    ),
)
def test_costs(entry):
    """Our counts are as near to the paper's as the row says."""
    counts = count_row(entry)
    if entry.table.added:
        counts = [value - base for value, base in zip(counts, count_row(entries_of(entry.number)[0]), strict=True)]
    millions, share = entry.close
    if millions is not None:
        assert counts[0] == pytest.approx(entry.row.cost[0], abs=millions)
    if share is not None:
        assert counts[1] == pytest.approx(entry.row.cost[1], rel=share)


@pytest.mark.parametrize("name", every_size(ARCHITECTURE))
def test_the_architecture_is_that_of_table_1(name):
    assert architecture(name) == ARCHITECTURE[name]


@pytest.mark.slow
def test_table_1_and_a_table_with_networks_that_we_lack(capsys):
    assert run(["complexity", "--table", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("yes") for line in lines) == 16
    rows = printed(10, capsys)
    assert rows["Sparse R-CNN, ResNet-50"] == ["106.34", "106.1", "112.89", "112.82", "45.0"]
    assert run(["complexity", "--table", "12"]) == 0
    assert re.search(r"SETR \(T-Large\), PUP +- +319.11 +- +1079.18 +81.64", capsys.readouterr().out)


def test_every_table_of_the_paper_is_there():
    assert set(TABLES) == set(range(2, 18))


@pytest.mark.parametrize(
    "entry",
    of_each(ENTRIES, lambda entry: entry.number in FIRST_PAPER or entry.backbone == "dgmn2_tiny" or entry.number == 10),
)
def test_rows_can_be_trained(entry):
    """The options that train a row build its network, and its recipe exists."""
    assert entry.recipe in recipe_names()
    options = shlex.split(options_of(entry))
    named = dict(zip(options[::2], options[1::2], strict=True))
    assert len(entry.row.scores) == len(entry.table.metrics)
    if entry.task == "classification":
        assert named == {"--model.model": entry.backbone}
        with torch.device("meta"):
            assert timm.create_model(entry.backbone).num_classes == 1000
        return
    backbone = named["--model.backbone"]
    recipe = yaml.safe_load(find_recipe(entry.recipe).read_text())["model"]["init_args"]
    assert recipe["model"] == entry.builder
    assert recipe["num_classes"] == entry.table.classes
    args = recipe["model_args"]
    if entry.number in FIRST_PAPER:
        args = json.loads(named["--model.model_args"])
        assert args.pop("pretrained") is True
        assert timm.get_pretrained_cfg(backbone).tag == "tv_in1k"
    else:
        assert named["--model.model_args.pretrained"] == "true"
    with torch.device("meta"):
        classes = int(named.get("--model.num_classes", entry.table.classes))
        network = build_named({**SEGMENTERS, **DETECTORS}, entry.builder, backbone, classes, args)
    modules = [module for module in network.modules() if isinstance(module, DGMN)]
    if entry.number in FIRST_PAPER:
        name = entry.row.name
        assert bool(modules) == (entry.number == 13 or "DGMN" in name or "DA" in name or name.strip() in NO_NAME)


@pytest.mark.parametrize(("number", "row"), [(3, 0), (13, -1), (16, 2)])
def test_options_are_understood(number, row, capsys):
    """Options on the command line replace what the recipe says."""
    entry = entries_of(number)[row]
    with pytest.raises(SystemExit) as stopped:
        run(["fit", "-c", entry.recipe, *shlex.split(options_of(entry)), "--print_config"])
    assert stopped.value.code == 0
    config = capsys.readouterr().out
    if number == 13:
        assert "hard_below: 0.7" in config
        assert "flip: true" in config
        assert re.search(r"multi_grid:\s+- 1\s+- 2\s+- 4", config)
        assert re.search(r"sampling_rates:\s+- 1\s+- 1\s+- 1\s+- 1\s+\w", config)
    else:
        assert "module: none" in config
        assert "module: dgmn" not in config
        assert f"backbone: {'dgmn_resnet50' if number == 3 else 'dgmn_resnext101_32x8d'}" in config


@pytest.mark.parametrize("options", [["dgmn2_tiny"], ["--size", "224"], ["--task", "detection"]])
def test_a_table_goes_alone(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["complexity", "--table", "2", *options])
    assert stopped.value.code == 2
    assert "--table has its own networks and sizes" in capsys.readouterr().err

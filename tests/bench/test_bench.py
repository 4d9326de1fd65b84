"""The command end to end, on sizes that take seconds."""

import csv
import itertools
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dgmn.bench.measure import Timing, peak_of_this_process, time_side_by_side
from dgmn.ops import BACKENDS
from dgmn_cli import run


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(path):
    """The lines at the head of a file as a dict, and its rows."""
    lines = path.read_text().splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    for row in rows:
        for column in ("ms", "q25", "q75", "images_per_s"):
            assert float(row[column]) > 0
        assert float(row["q25"]) <= float(row["ms"]) <= float(row["q75"])
        assert float(row["images_per_s"]) == pytest.approx(1000 * int(row["batch"]) / float(row["ms"]), rel=1e-4)
    return head, rows


def check_picture(path, least_width=600):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width >= least_width
        assert picture.height >= 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


def test_ops(tmp_path, capsys):
    arguments = "bench ops --shapes 1x4x4x2x8,1x6x5x1x8 --contenders reference,original --rounds 3 --threads 1"
    assert run([*arguments.split(), "--no-memory", "--out", str(tmp_path)]) == 0
    head, rows = read(tmp_path / "ops_cpu.csv")
    assert {"device", "processor", "threads", "torch", "timm", "dgmn", "python", "date"} <= head.keys()
    assert head["threads"] == "1 thread"
    shapes = ("1x4x4x2x8", "1x6x5x1x8")
    assert [(r["mode"], r["case"], r["contender"]) for r in rows] == [
        (mode, shape, name)
        for mode in ("forward", "forward+backward")
        for shape in shapes
        for name in ("reference", "original")
    ]
    ratios = []
    for ours, original in zip(rows[::2], rows[1::2], strict=True):
        assert float(original["ratio"]) == 1
        assert float(ours["ratio"]) == pytest.approx(float(original["ms"]) / float(ours["ms"]), rel=1e-4)
        assert ours["peak_mb"] == ""
        ratios.append(float(ours["ratio"]))
    out = capsys.readouterr().out
    assert f"reference {math.sqrt(ratios[0] * ratios[1]):.2f}, original 1.00" in out
    assert "x original" in out
    assert head["device"] in out
    check_picture(tmp_path / "ops_cpu.png")


@pytest.mark.slow
def test_ops_all_contenders_with_memory(tmp_path, capsys):
    assert run(["bench", "ops", "--shapes", "1x56x56x1x64", "--rounds", "1", "--out", str(tmp_path)]) == 0
    _, rows = read(tmp_path / "ops_cpu.csv")
    skipped = capsys.readouterr().err
    for name in (*BACKENDS[1:], "original", "inductor"):
        assert name in {r["contender"] for r in rows} or f"{name} skipped: " in skipped
    assert {"reference", "original"} <= {r["contender"] for r in rows}
    peak = {r["contender"]: float(r["peak_mb"]) for r in rows if r["mode"] == "forward"}
    nodes = 56 * 56 * 64 * 9 * 4 / 1e6  # MB of one map's sampled nodes; the original keeps those of two
    assert peak["original"] > 1.9 * nodes
    assert peak["reference"] < peak["original"]
    check_picture(tmp_path / "ops_cpu.png")


@pytest.mark.slow
def test_models(tmp_path, capsys):
    names = ["dgmn2_nano", "dgmn2_nano:original", "swin_tiny_patch4_window7_224"]
    arguments = f"bench models --models {','.join(names)} --sizes 64,33x70 --rounds 2 --threads 1 --no-memory"
    assert run([*arguments.split(), "--out", str(tmp_path)]) == 0
    _, rows = read(tmp_path / "models_cpu.csv")
    assert [(r["mode"], r["case"], r["contender"]) for r in rows] == [
        (mode, size, name) for mode in ("inference", "train") for size in ("64x64", "33x70") for name in names
    ]
    for i in range(0, len(rows), len(names)):
        swin = float(rows[i + 2]["ms"])
        for row in rows[i : i + len(names)]:
            assert float(row["ratio"]) == pytest.approx(swin / float(row["ms"]), rel=1e-4)
    assert "x Swin-T" in capsys.readouterr().out
    check_picture(tmp_path / "models_cpu_inference.png")
    check_picture(tmp_path / "models_cpu_train.png")


@pytest.mark.slow
def test_classification_with_memory_in_another_process(tmp_path):
    arguments = "bench models --models dgmn2_nano --sizes 224 --batch 2 --mode train --rounds 1 --threads 1"
    assert run([*arguments.split(), "--out", str(tmp_path)]) == 0
    _, (row,) = read(tmp_path / "models_cpu.csv")
    assert row["batch"] == "2"
    assert row["pixels"] == str(2 * 224 * 224)
    assert row["ratio"] == ""  # Swin-T did not run
    # What is kept for the backward pass of two images, and all gradients, takes tens of megabytes.
    assert 30 < float(row["peak_mb"]) < 2000


def test_a_network_that_cannot_run_is_left_out(tmp_path, capsys):
    arguments = "bench models --models dgmn2_nano,deit_small_patch16_224 --sizes 40x40 --mode inference --rounds 1"
    assert run([*arguments.split(), "--no-memory", "--out", str(tmp_path)]) == 0
    _, rows = read(tmp_path / "models_cpu.csv")
    assert [r["contender"] for r in rows] == ["dgmn2_nano"]
    assert "deit_small_patch16_224 skipped: " in capsys.readouterr().err


def test_scaling(tmp_path, capsys):
    arguments = "bench models --scaling --models dgmn2_nano:fused:original --sizes 32,32x64 --rounds 1 --no-memory"
    assert run([*arguments.split(), "--out", str(tmp_path)]) == 0
    _, rows = read(tmp_path / "scaling_cpu.csv")
    assert [r["pixels"] for r in rows] == ["1024", "2048"]
    assert {r["contender"] for r in rows} == {"dgmn2_nano:original:fused"}
    assert "us/pixel" in capsys.readouterr().out
    check_picture(tmp_path / "scaling_cpu.png")


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = "bench ops --shapes 1x2x2x1x4 --contenders reference,original --rounds 1 --no-memory"
    assert run([*arguments.split(), "--out", str(tmp_path)]) == 0
    assert "pip install 'dgmn[bench]'" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["ops_cpu.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("models --models nothing", "timm knows no 'nothing'"),
        ("models --models resnet18:original", "only networks of dgmn have the variant 'original'"),
        ("models --models dgmn2_nano:faster", "'faster' must be one of original, fused, compiled"),
        ("models --scaling --sizes 224", "leave 224 out of --sizes"),
        ("models --scaling --sizes 32 --mode train", "--scaling measures inference, got --mode train"),
        ("ops --contenders cuda", "--contenders: 'cuda' must be one of "),
        ("ops --shapes 1x2x2x1x4 --rounds 1 --out pyproject.toml", "--out pyproject.toml"),
        ("models --models deit_small_patch16_224 --sizes 33 --rounds 1", "nothing could be measured"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    assert run(["bench", *arguments.split()]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("dgmn: error: ")
    assert message in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(capsys):
    assert run(["bench", "ops", "--device", "cuda"]) == 2
    assert "--device cuda: this PyTorch finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ops --shapes 4x56", "argument --shapes: must be BxHxWxHEADSxD, for instance 4x56x56x1x64, got '4x56'"),
        ("models --models ,", "argument --models: must name something, separated by commas, got ','"),
        ("models --sizes 0", "argument --sizes: must be 224 or 512x1024, got '0'"),
        ("models --rounds none", "--rounds: must be a whole number of at least 1 and below 1,000,000, got 'none'"),
        ("speed", "invalid choice: 'speed'"),
    ],
)
def test_malformed_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["bench", *arguments.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["ops", "--help"], ["models", "--help"]])
def test_help_needs_no_torch(arguments):
    code = f"""
import sys, dgmn_cli
try:
    dgmn_cli.run({["bench", *arguments]})
except SystemExit as stopped:
    assert not stopped.code
assert "torch" not in sys.modules
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: dgmn bench")


def test_timing_is_interleaved_and_fair():
    calls = []
    work = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = time_side_by_side(work, 4, "cpu")
    assert set(timings) == {"a", "b"}
    assert all(isinstance(t, Timing) and 0 < t.q25 <= t.median <= t.q75 for t in timings.values())
    turns = [calls[0], *(there for here, there in itertools.pairwise(calls) if here != there)]
    assert len(turns) >= 5  # each got several turns


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_peak_memory_of_known_work():
    def work():
        return torch.ones(12_500_000).max()

    for _ in range(2):  # the second time, the same work ran before
        assert peak_of_this_process(work, already_ran=True) == pytest.approx(50, rel=0.1)

"""Parameters and multiply-adds compared with the paper's."""

import pytest
import timm
import torch
from torch import nn

from dgmn.complexity import count
from dgmn.weights import find
from dgmn_cli import run

from sizes import every_size

PARAMETERS = {
    "dgmn2_tiny": 12_101_464,
    "dgmn2_small": 20_968_360,
    "dgmn2_medium": 35_811_712,
    "dgmn2_large": 48_286_762,
}


@pytest.mark.parametrize("name", every_size(PARAMETERS))
def test_within_two_percent_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        cost = count(timm.create_model(name), (224, 224))
    assert cost.params == PARAMETERS[name]
    published = find(name).metrics["gmacs"]
    assert cost.original_macs / 1e9 == pytest.approx(published, rel=0.02)
    assert 0.95 < cost.macs / cost.original_macs < 1


def test_counts_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    assert count(layer, (10, 12)).macs == 10 * 12 * 8 * 27
    assert count(nn.Linear(12, 5), (10, 12)).macs == 3 * 10 * 12 * 5


def test_linear_in_pixels() -> None:
    model = timm.create_model("dgmn2_nano", num_classes=0, device="meta")
    small, large = (count(model, (side, side)) for side in (128, 512))
    assert large.macs / small.macs == pytest.approx(16, rel=0.01)
    assert large.original_macs / small.original_macs > 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swinv2_tiny_window8_256"], "swinv2_tiny_window8_256 does not run on 224 x 224 pixels (Input height"),
        (["halonet26t"], "(AssertionError); give --size"),
        (["resnet18.foo"], "resnet18.foo does not run on 224 x 224 pixels (Invalid pretrained tag"),
    ],
)
def test_networks_that_do_not_run(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["complexity", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_all_classify_as_many_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["complexity", "vit_tiny_patch16_224.augreg_in21k"]) == 0
    out = capsys.readouterr().out
    assert "1000 classes" in out
    assert "5,717,416" in out


def test_command_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["complexity", "dgmn2_tiny", "resnet18"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("dgmn2_tiny")).split()
    assert row == ["dgmn2_tiny", "12,101,464", "12.1", "M", "2.25", "2.31", "2.3"]
    assert "resnet18" in out
    assert run(["complexity", "nothing"]) == 2

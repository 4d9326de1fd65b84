"""Costs of the DGMN module compared with the paper's Table 2, and the arguments that it refuses."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dgmn.complexity import count
from dgmn.layers import DGMN


@pytest.mark.parametrize(
    ("options", "params", "gmacs"),
    [
        ({"sampling_rates": (1,), "groups": 0}, 0.57, 5.32),  # DA
        ({"sampling_rates": (1,)}, 0.73, 6.88),  # DA+DW
        ({"sampling_rates": (1, 6, 12, 24, 36)}, 2.61, 24.55),  # DA+DW+DS, where DS are the sampling rates
    ],
)
def test_added_cost_is_that_of_table_2(options, params, gmacs):
    with torch.device("meta"):
        module = DGMN(512, fusion="concat", dynamic_sampling=False, **options)
    cost = count(module, (97, 97), in_chans=512)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    # Without biases and without the sums over the nodes, the costs agree to the last digit.
    assert round(sum(p.numel() for p in module.parameters() if p.dim() > 1) / 1e6, 2) == params
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 512, 97, 97, device="meta"))
    assert round(counter.get_flop_counts()["Global"][torch.ops.aten.convolution] / 2e9, 2) == gmacs


def test_walks_cost_18_channels_of_a_convolution():
    costs = []
    for dynamic_sampling in (False, True):
        with torch.device("meta"):
            module = DGMN(512, form="released", dynamic_affinity=False, dynamic_sampling=dynamic_sampling)
        costs.append(count(module, (14, 14), in_chans=512))
    assert costs[1].params - costs[0].params == 4 * 18 * 9 * 512
    assert costs[1].macs - costs[0].macs == 4 * 18 * 9 * 512 * 14 * 14


def test_costs_are_the_same_on_all_devices():
    module = DGMN(8, sampling_rates=(1, 4)).eval()
    assert count(module, (6, 7), in_chans=8) == count(copy.deepcopy(module).to("meta"), (6, 7), in_chans=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
        ({"channels": 8.0}, "channels must be a whole number"),
        ({"sampling_rates": ()}, r"sampling_rates must be whole numbers, at least one, got \(\)"),
        ({"sampling_rates": (1, 0)}, "sampling_rates must be whole numbers of at least 1, got 0"),
        ({"sampling_rates": (1.5,)}, r"sampling_rates must be .*, got 1\.5"),
        ({"groups": 3}, "groups must divide channels = 8, got 3"),
        ({"groups": -1}, "groups must be a whole number of at least 0, got -1"),
        ({"groups": True}, "groups must be a whole number"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"fusion": "mean"}, "fusion must be .*concat.*mean"),
        ({"form": "official"}, "form must be .*released.*official"),
        ({"form": "released", "groups": 0}, "groups = 0"),
        ({"form": "released", "dynamic_sampling": False}, "dynamic_affinity only with dynamic_sampling"),
        ({"form": "released", "sampling_rates": (1, 4)}, "four sampling_rates, got 2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DGMN(**{"channels": 8, **options})


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 3, 5, 6), (1, 4, 0, 6)])
def test_bad_maps(shape):
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 4, H, W\)"):
        DGMN(4)(torch.randn(shape))

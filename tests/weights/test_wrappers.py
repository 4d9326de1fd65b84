"""Weights that were saved from a network in a wrapper, and networks without memory."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

import dgmn
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.errors import InputError
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS
from dgmn.weights import read_checkpoint


def nano():
    return timm.create_model("dgmn2_nano", num_classes=3)


def detector():
    return DETECTORS["retinanet"]("dgmn2_nano", 3, min_size=64, max_size=96, channels=16)


def segmenter():
    return SEGMENTERS["dilated_fcn"]("resnet10t", 3, channels=16, module="dgmn")


NETWORKS = {"classifier": nano, "detector": detector, "segmenter": segmenter}


class Parallel(nn.Module):
    """Names its network like DistributedDataParallel, DataParallel and DeepSpeed."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Run(nn.Module):
    """Names its network like a training run."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def compiled_inside(network):
    """torch.compile on every part of a network."""
    for name, part in list(network.named_children()):
        setattr(network, name, torch.compile(part))
    return network


def recomputed(network):
    """Activation checkpoints around all convolutions."""
    apply_activation_checkpointing(network, check_fn=lambda module: isinstance(module, nn.Conv2d))
    return network


def sharded_names(network):
    """FSDP's names: every part of the network in a wrapper of its own."""
    for name, part in list(network.named_children()):
        wrapper = nn.Module()
        wrapper._fsdp_wrapped_module = part
        setattr(network, name, wrapper)
    outer = nn.Module()
    outer._fsdp_wrapped_module = network
    return outer


WRAPPERS = {
    "compile": torch.compile,
    "parallel": Parallel,
    "average": AveragedModel,
    "ema of timm": ModelEmaV3,
    "older ema of timm": ModelEmaV2,
    "run": Run,
    "compiled parts": compiled_inside,
    "activation checkpoints": recomputed,
    "fsdp": sharded_names,
    "average of a compiled network": lambda network: AveragedModel(torch.compile(network)),
    "compiled parallel": lambda network: torch.compile(Parallel(network)),
    "parallel of a parallel": lambda network: Parallel(Parallel(network)),
    "run of a compiled network": lambda network: Run(torch.compile(network)),
    "run of a parallel": lambda network: Run(Parallel(compiled_inside(network))),
    "parallel run": lambda network: Parallel(Run(sharded_names(network))),
}


@pytest.mark.parametrize(
    ("wrapper", "kind"),
    [*((wrapper, "classifier") for wrapper in WRAPPERS)]
    + [(wrapper, kind) for wrapper in ("run of a parallel", "parallel run") for kind in ("detector", "segmenter")],
)
def test_every_wrapper(wrapper, kind, tmp_path):
    make = NETWORKS[kind]
    expected = make()
    wrapped = WRAPPERS[wrapper](copy.deepcopy(expected))
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "x.pth")
    network = make()
    report = dgmn.load_checkpoint(network, tmp_path / "x.pth")
    assert report.complete
    assert report.fresh == ()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


@pytest.mark.parametrize("wrapper", ["parallel", "compile", "average", "compiled parallel"])
def test_official_names_in_a_wrapper(wrapper, official_weights, tmp_path):
    """Only the outside of a published network can be in a wrapper here: the names are those of the original code."""
    prefix = {"parallel": "module.", "compile": "_orig_mod.", "average": "module."}.get(wrapper, "_orig_mod.module.")
    weights = {prefix + name: tensor for name, tensor in official_weights("a_cls_tiny").items()}
    if wrapper == "average":
        weights["n_averaged"] = torch.tensor(3)
    torch.save({"model": weights}, tmp_path / "x.pth")
    torch.save({"model": official_weights("a_cls_tiny")}, tmp_path / "y.pth")
    networks = [timm.create_model("dgmn2_tiny") for _ in range(2)]
    for network, name in zip(networks, "xy", strict=True):
        dgmn.load_checkpoint(network, tmp_path / f"{name}.pth")
    for one, other in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("entries", "taken", "others"),
    [
        (["state_dict", "state_dict_ema"], "state_dict", ("state_dict_ema",)),
        (["model", "model_ema"], "model", ("model_ema",)),
        (["ema", "model"], "model", ("ema",)),
        (["model_ema"], "model_ema", ()),
        (["state_dict_ema"], "state_dict_ema", ()),
        (["ema"], "ema", ()),
        (["module"], "module", ()),
        (["model_state_dict"], "model_state_dict", ()),
        (["ema.module"], "ema.module", ()),
        (["model.state_dict"], "model.state_dict", ()),
    ],
)
def test_plain_weights_before_averages(entries, taken, others, tmp_path):
    """The report says which were taken, and what else the file holds."""
    content = {"epoch": 3, "optimizer": {"state": {}}}
    networks = {entry: nano() for entry in entries}
    for entry, network in networks.items():
        name, _, inner = entry.partition(".")
        weights = network.state_dict()
        content[name] = {inner: weights} if inner else weights
    torch.save(content, tmp_path / "x.pth")
    network = nano()
    report = dgmn.load_checkpoint(network, tmp_path / "x.pth")
    assert f"in {taken!r}" in str(report)
    assert read_checkpoint(tmp_path / "x.pth").others == others
    assert all(other in str(report) for other in others)
    for name, tensor in networks[taken].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_parametrised_weights_are_refused(tmp_path):
    network = nano()
    weight_norm(network.head)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="call remove_parametrizations on the network before saving"):
        dgmn.load_checkpoint(nano(), tmp_path / "x.pth")


# ------------------------------------------------------------------------------------------- the meta device


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_without_memory_is_filled(kind, tmp_path):
    make = NETWORKS[kind]
    expected = make().eval()
    torch.save(expected.state_dict(), tmp_path / "x.pth")
    with torch.device("meta"):
        network = make().eval()
    trained = {name for name, parameter in expected.named_parameters() if parameter.requires_grad}
    assert dgmn.load_checkpoint(network, tmp_path / "x.pth").complete
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == trained
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        one, other = (net([images[0]] if kind == "detector" else images) for net in (expected, network))
    if kind == "detector":
        assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    else:
        assert torch.equal(one, other)


def test_tied_weights_and_types_without_memory(tmp_path):
    """A network keeps its type of numbers, and weights that two of its parts share."""

    def tied():
        network = nano()
        network.other = network.head
        return network

    torch.save(tied().state_dict(), tmp_path / "x.pth")
    with torch.device("meta"):
        network = tied().bfloat16()
    dgmn.load_checkpoint(network, tmp_path / "x.pth")
    assert network.other.weight is network.head.weight
    assert network.head.weight.dtype == torch.bfloat16
    assert network.head.weight.device.type == "cpu"


def test_what_weights_do_not_fill_is_refused(tmp_path):
    for name, options in {"swin_tiny_patch4_window7_224": {}, "dgmn2_nano": {"reset_head": True}}.items():
        torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "x.pth")
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=3)
        with pytest.raises(
            InputError, match="the network is on the meta device, and the weights do not fill all of it"
        ):
            dgmn.load_checkpoint(network, tmp_path / "x.pth", **options)
        assert all(parameter.is_meta for parameter in network.parameters())

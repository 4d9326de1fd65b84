"""Networks in the hands of other libraries: hooks, adapters, quantisation, tracers and transforms."""

import copy
import datetime
import os
import warnings

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.feature_extraction import create_feature_extractor

from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.layers.context import MODULES
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS

DETR = {"transformer_args": {"num_queries": 10, "encoder_layers": 2, "decoder_layers": 2, "d_model": 64}}


def moved(model):
    """The network with walks that lead somewhere, and without weights of zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def nano(**options):
    return moved(timm.create_model("dgmn2_nano", num_classes=10, **options))


def resnet(module):
    return moved(
        timm.create_model("dgmn_resnet50", layers=(1, 1, 1, 1), channels=(8, 16, 32, 64), module=module, num_classes=10)
    )


CLASSIFIERS = {
    "dgmn2_nano": nano,
    **{module: lambda module=module: resnet(module) for module in MODULES if module != "none"},
}


def detector(name):
    few = {"deformable_detr": DETR, "sparse_rcnn": {"num_proposals": 10, "num_stages": 2}}
    options = few.get(name.removesuffix("_refine_two_stage"), {})
    return DETECTORS[name]("dgmn2_nano", 3, min_size=64, max_size=96, **options)


def targets(images):
    box = torch.tensor([[4.0, 6, 40, 50]])
    return [
        {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, *x.shape[-2:], dtype=torch.uint8)}
        for x in images
    ]


def passes(name):
    """A network, and what runs all of it once and gives a number to train."""
    if name in CLASSIFIERS:
        return CLASSIFIERS[name](), lambda model: model(torch.randn(2, 3, 64, 96)).square().mean()
    if name in DETECTORS:
        images = [torch.rand(3, 64, 96), torch.rand(3, 64, 64)]
        return moved(detector(name)), lambda model: sum(model(images, targets(images)).values())
    return moved(SEGMENTERS[name]("dgmn2_nano", 5)), lambda model: total(model(torch.randn(2, 3, 64, 64)))


def total(out):
    if isinstance(out, torch.Tensor):
        return out.square().mean()
    return sum(total(part) for part in (out.values() if isinstance(out, dict) else out))


NETWORKS = [*CLASSIFIERS, *DETECTORS, *SEGMENTERS]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_module_with_parameters_is_called(name):
    # Hooks, adapters, sharding and quantisation act on calls of modules.
    model, run = passes(name)
    called = set()
    named = {name: module for name, module in model.named_modules() if any(True for _ in module.parameters(False))}
    for name_, module in named.items():
        module.register_forward_hook(lambda *_, name=name_: called.add(name))
    run(model.train())
    tables = {name for name, module in named.items() if isinstance(module, nn.ParameterList | nn.Embedding)}
    assert set(named) - tables - called == set()


def with_adapters(model):
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.dilation == (1, 1))  # peft's adapters have no dilation
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights="gaussian"))


@pytest.mark.parametrize("name", ["dgmn2_nano", "dgmn", "deformable", "criss_cross", "sparse_rcnn", "deformable_detr"])
def test_adapters_of_all_layers_are_trained(name):
    model, run = passes(name)
    torch.manual_seed(1)
    run(model.train()).backward()
    # Without the maps of a pyramid that no region lies on, and so on.
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model = with_adapters(model)
    torch.manual_seed(1)
    run(model).backward()
    adapters = {name: p for name, p in model.named_parameters() if ".lora_B." in name}
    assert len(adapters) > 10
    idle = [name.split(".lora_B.")[0] for name, p in adapters.items() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if f"{name.removeprefix('base_model.model.')}.weight" in trained] == []


def _train_adapters(rank, folder):
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", world_size=2, rank=rank, timeout=datetime.timedelta(minutes=20)
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(with_adapters(nano()).train())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):  # a parameter without a gradient ends the second step with an error
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    torch.save({name: p for name, p in model.named_parameters() if "lora" in name}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_adapters_are_trained_by_two_processes(tmp_path):
    mp.spawn(_train_adapters, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(parameter.any() for name, parameter in first.items() if "lora_B" in name)


def test_walks_of_adapters_are_precise_under_autocast():
    model = timm.create_model("dgmn2_nano", num_classes=10).eval()
    adapted = with_adapters(copy.deepcopy(model))
    dtypes = {}
    for name, module in adapted.named_modules():
        if name.endswith("attn.offset"):
            module.register_forward_hook(lambda _, __, out, name=name: dtypes.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        adapted(torch.randn(1, 3, 64, 64))
    assert len(dtypes) == 7
    assert set(dtypes.values()) == {torch.float32}


def test_dynamic_quantisation_and_swapped_layers():
    model = nano().eval()
    image = torch.randn(2, 3, 64, 96)
    want = model(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    with torch.no_grad():
        assert (quantised(image) - want).norm() < 0.2 * want.norm()
    swapped = copy.deepcopy(model)
    for parent in list(swapped.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):  # a layer of another class, with the same numbers
                setattr(parent, name, nn.Sequential(nn.Unflatten(-1, (1, -1)), Squeezed(layer)))
    torch.testing.assert_close(swapped(image), want)


class Squeezed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.inner = copy.deepcopy(layer)

    def forward(self, x):
        return self.inner(x.squeeze(-2))


# -------------------------------------------------------------------------------------------- tracers and transforms


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_vmap(name):
    model = CLASSIFIERS[name]().eval()
    images = torch.randn(3, 1, 3, 64, 96)
    with torch.no_grad():
        want = torch.stack([model(image) for image in images])
        torch.testing.assert_close(torch.func.vmap(model)(images), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_symbolic_trace(name):
    model = CLASSIFIERS[name]().eval()
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for shape in ((2, 3, 64, 96), (1, 3, 96, 64)):
            image = torch.randn(shape)
            torch.testing.assert_close(traced(image), model(image))


def test_feature_extractor_of_torchvision():
    model = nano().eval()
    image = torch.randn(2, 3, 64, 96)
    extractor = create_feature_extractor(model, {"stages.1": "early", "stages.2.blocks.0.attn.qkv": "qkv"})
    with torch.no_grad():
        maps = extractor(image)
        want = model.forward_intermediates(image, intermediates_only=True)[1]
    torch.testing.assert_close(maps["early"], want)
    assert maps["qkv"].shape == (2, 4, 6, 3 * 128)


TRACED = ("dgmn2_nano", "dgmn")  # a trace keeps its memory until the process ends


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in TRACED)) for x in CLASSIFIERS])
def test_torchscript(name):
    model = CLASSIFIERS[name]().eval()
    image = torch.randn(1, 3, 64, 96)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, image, check_trace=False)
        torch.testing.assert_close(traced(image), model(image), rtol=1e-4, atol=1e-5)
        if name not in ("aspp", "global_context"):  # those have no modules of ours
            with pytest.raises(RuntimeError, match=r"torch\.jit\.script does not take .*Use torch\.export"):
                torch.jit.script(model)

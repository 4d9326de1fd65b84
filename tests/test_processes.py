"""Two processes on the CPU (gloo) compute what one computes with the images of both."""

import json
import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

import dgmn
from dgmn.classification.builders import classifier
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.detection.coco_metric import CocoMetric
from dgmn.processes import mean_divisor
from dgmn.segmentation import PixelLoss
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS

from small_runs import KINDS


def in_two(work, folder, *arguments):
    """Runs `work(folder, *arguments)` in two processes of a group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=_joined, args=(work, rank, folder, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def _joined(work, rank, folder, *arguments):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", world_size=2, rank=rank)
    work(folder, *arguments)
    dist.destroy_process_group()


def detections(truth, image):
    """What a detector may find in an image: its objects, moved, and something else."""
    boxes = torch.tensor([entry["bbox"] for entry in truth["annotations"] if entry["image_id"] == image] + [[0] * 4])
    boxes = boxes.double() + 0.7 * image
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([entry["category_id"] for entry in truth["annotations"] if entry["image_id"] == image] + [1])
    return {"boxes": boxes, "labels": labels - 1, "scores": torch.linspace(0.9, 0.2, len(boxes))}


def _evaluate(folder):
    rank, file = dist.get_rank(), folder / "truth.json"
    if rank == 1:
        file = folder / "not there"  # only the first process reads the annotations
    truth = json.loads((folder / "truth.json").read_text())
    metric = CocoMetric(file, (1, 2))
    for image in range(rank, 5, 2):
        metric.update([image], [detections(truth, image)])
    scores = metric.compute()
    found = {"scores": scores, "results": metric.results}
    found["divisors"] = [float(mean_divisor(number, torch.zeros(()))) for number in (rank, 3 * rank, 0)]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_detections_are_gathered_by_the_first_process(tmp_path):
    objects = [(0, 1), (0, 2), (1, 1), (2, 2), (2, 2), (4, 1)]
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": [9 * i, 5, 20, 30 + i]}
        for i, (image, category) in enumerate(objects)
    ]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 90} for i in range(5)],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2)],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    in_two(_evaluate, tmp_path)
    one = CocoMetric(truth, (1, 2))
    for image in range(5):
        one.update([image], [detections(truth, image)])
    want = json.loads(json.dumps(one.compute()))
    assert 0.3 < want["box"][0]["AP"] < 0.9
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["scores"] == second["scores"] == want
    assert sorted(map(json.dumps, first["results"])) == sorted(map(json.dumps, one.results))
    assert second["results"] == []
    # One object, three, and none: the mean gradient is that of the sum divided by 1, 3 and 1.
    assert first["divisors"] == second["divisors"] == [0.5, 1.5, 0.5]


def build(kind):
    """A small network in float64."""
    torch.manual_seed(0)
    options = KINDS[kind][1]
    arguments = {**options, **yaml.safe_load(options.get("model_args", "{}"))}
    arguments.pop("model_args", None)
    backbone = arguments.pop("backbone", "dgmn2_nano")
    if kind == "classifier":
        model = classifier(backbone, 3, {})
    else:
        model = (SEGMENTERS | DETECTORS)[kind](backbone, num_classes=3, **arguments)
    if kind == "mask_rcnn":  # they draw anchors and regions at random: take all
        for part in (model.rpn, model.roi_heads):
            part.fg_bg_sampler = BalancedPositiveNegativeSampler(10**6, 0.5)
    frozen(model)
    return model.double()


def frozen(model):
    """Makes a network compute the same in every run, and for an image whatever is beside it."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in ("dropout", "activation_dropout", "attention_dropout"):  # of transformers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # in training they depend on the images beside


def loss_of(model, kind, some):
    """The loss of some of four images. They have one, no, two and three objects, or pixels without a label."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 64, 64, generator=generator, dtype=torch.float64)
    if kind == "classifier":
        return nn.functional.cross_entropy(model(images[some]), torch.tensor([0, 1, 2, 1])[some])
    if kind in SEGMENTERS:
        masks = torch.randint(3, (4, 64, 64), generator=generator)
        masks[0, :50], masks[3, :, :9] = 255, 255
        return PixelLoss("labelled")(model(images[some]), masks[some])
    boxes = torch.tensor([[4.0, 6, 40, 50], [20, 20, 60, 44], [1, 30, 33, 63]], dtype=torch.float64)
    masks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    masks[:, 10:50, 10:40] = 1
    targets = [{"boxes": boxes[:n], "labels": torch.arange(n), "masks": masks[:n]} for n in (1, 0, 2, 3)]
    losses = model(list(images[some]), targets[some])
    return torch.stack(list(losses.values())).sum()


def _train(folder, kinds):
    rank = dist.get_rank()
    for kind in kinds:
        model = DistributedDataParallel(build(kind))
        loss_of(model, kind, slice(2 * rank, 2 * rank + 2)).backward()
        gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
        torch.save(gradients, folder / f"{kind}_{rank}.pt")
        # A parameter without a gradient would end the next step with an error.
        loss_of(model, kind, slice(2 * rank, 2 * rank + 2)).backward()


@pytest.mark.slow
def test_gradients_equal_those_of_one_process_with_all_images(tmp_path):
    in_two(_train, tmp_path, list(KINDS))
    for kind in KINDS:
        model = build(kind)
        loss_of(model, kind, slice(0, 4)).backward()
        for rank in range(2):
            found = torch.load(tmp_path / f"{kind}_{rank}.pt")
            size = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
            assert size > 1e-3, kind
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    torch.testing.assert_close(
                        found[name],
                        parameter.grad,
                        rtol=1e-10,
                        atol=1e-10 * size,
                        msg=lambda text, place=(kind, name): f"{place}: {text}",
                    )


def _shard(folder):
    torch.manual_seed(0)
    model = classifier("dgmn2_nano", 3, {})
    frozen(model.double())
    for stage in model.stages:
        for block in stage.blocks:
            fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    assert held < 0.51 * sum(parameter.numel() for parameter in model.parameters())
    rank = dist.get_rank()
    steps(model, slice(2 * rank, 2 * rank + 2))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(whole, folder / "whole.pt")


def steps(model, some):
    """Three steps on some of four images."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(4, 3, 64, 64, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[some]), torch.tensor([0, 1, 2, 1])[some]).backward()
        optimizer.step()


@pytest.mark.slow
def test_fsdp2_trains_what_one_process_trains(tmp_path):
    """Its consolidated checkpoint loads into a plain network."""
    plain = classifier("dgmn2_nano", 3, {})
    frozen(plain.double())
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    steps(plain, slice(0, 4))
    in_two(_shard, tmp_path)
    loaded = classifier("dgmn2_nano", 3, {}).double()
    dgmn.load_checkpoint(loaded, tmp_path / "whole.pt")
    moved = 0.0
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-6, atol=1e-9, msg=name)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3

"""Two processes on the CPU (gloo) compute what one computes with the images of both."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

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
    """A small network in float64, which computes the same in every run, and for an image whatever is beside it."""
    torch.manual_seed(0)
    arguments = {key: value for key, value in KINDS[kind][1].items() if key != "model_args"}
    import yaml

    arguments |= yaml.safe_load(KINDS[kind][1].get("model_args", "{}"))
    backbone = arguments.pop("backbone", "dgmn2_nano")
    if kind == "classifier":
        model = classifier(backbone, 3, {})
    else:
        model = (SEGMENTERS | DETECTORS)[kind](backbone, num_classes=3, **arguments)
    if kind == "mask_rcnn":  # they draw anchors and regions at random: take all
        for part in (model.rpn, model.roi_heads):
            part.fg_bg_sampler = BalancedPositiveNegativeSampler(10**6, 0.5)
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # in training they depend on the images beside
    return model


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
    targets = [
        {"boxes": boxes[:n], "labels": torch.arange(n), "masks": masks[:n]} for n in (1, 0, 2, 3)
    ]
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
                    torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-10 * size, msg=name)

"""Deformable DETR computes what the original does, from the maps to the losses."""

import pytest
import torch

import dgmn
from dgmn.detection.deformable_detr import deformable_detr, predicted
from dgmn.detection.set_prediction import Objects, number_of_objects
from dgmn.errors import InputError

from golden_vectors import image, match_detections

CASE = "f_deformable_detr_tiny"
SMALL = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}


def saved(weights, path):
    torch.save({"model": weights, "epoch": 49}, path)
    return path


def batch():
    """Two images, the second padded below and on the right, and where they are valid."""
    images, valid = torch.zeros(2, 3, 256, 320), torch.zeros(2, 256, 320, dtype=torch.bool)
    for i, (height, width) in enumerate(((256, 320), (224, 290))):
        images[i, :, :height, :width] = torch.from_numpy(image(f"detr{i}", (1, 3, height, width)))[0]
        valid[i, :height, :width] = True
    return images, valid


def golden_objects():
    rows = (
        ((1, 17, 62, 90), ((0.3, 0.4, 0.2, 0.3), (0.6, 0.5, 0.5, 0.6), (0.8, 0.2, 0.1, 0.15), (0.15, 0.75, 0.25, 0.4))),
        ((44, 3), ((0.5, 0.5, 0.9, 0.8), (0.25, 0.3, 0.12, 0.2))),
    )
    found = []
    for labels, boxes in rows:
        found.append(Objects(torch.tensor(labels), *predicted(torch.zeros(0), torch.tensor(boxes))[1:]))
    return found


def test_equals_the_original(official_weights, golden, tmp_path):
    weights, vectors = official_weights(CASE), golden(CASE)
    model = deformable_detr("dgmn2_tiny", 91).eval()
    report = dgmn.load_checkpoint(model, saved(weights, tmp_path / "detr.pth"))
    assert report.ignored == ()
    assert report.origin == "official Deformable DETR in 'model'"
    images, valid = batch()
    with torch.no_grad():
        for i, (x, mask) in enumerate(model.levels(images, valid)):
            print(vectors.check(f"backbone.{i}", x))
            assert torch.equal(~mask, torch.from_numpy(vectors.raw[f"mask.{i}"]).bool())
            embedding = model.transformer.position_embedding
            print(vectors.check(f"pos.{i}", embedding(shape=x.shape, device=x.device, dtype=x.dtype, mask=mask)))
        outputs = model.predict(images, valid)
        assert outputs.proposals is None
        for i, (logits, boxes) in enumerate(outputs.layers):
            print(vectors.check(f"logits.{i}", logits))
            print(vectors.check(f"boxes.{i}", boxes))

        results = model.choose(*outputs.layers[-1], [(480, 600), (448, 580)])
        for i, found in enumerate(results):
            want = tuple(vectors.raw[f"post{i}.{part}"] for part in ("boxes", "scores", "labels"))
            assert len(found["boxes"]) == len(want[0]) == 100
            assert match_detections(want, tuple(found[part] for part in ("boxes", "scores", "labels"))) == 0

        objects = golden_objects()
        for i, layer in enumerate(outputs.layers):
            losses = model.criterion(predicted(*layer), objects, number_of_objects(objects))
            end = "" if i == 5 else f"_{i}"
            for name, theirs in {"classification": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
                want = float(vectors.raw[f"loss.{theirs}{end}"][0])
                print(float(losses[name]) / model.criterion.weights[name] / want - 1)
                assert float(losses[name]) / model.criterion.weights[name] == pytest.approx(want, rel=1e-4)
        losses = model.compute_loss(outputs, objects)
    assert losses.keys() == {"classification", "l1", "giou", "auxiliary"}
    assert float(sum(losses.values())) == pytest.approx(float(vectors.raw["loss.total"][0]), rel=1e-4)

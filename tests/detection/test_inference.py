"""Detections at several sizes and in mirrored images are joined."""

import pytest
import torch

from dgmn.detection import mask_rcnn, retinanet, sparse_rcnn
from dgmn.detection.inference import Inference, detect
from dgmn.errors import InputError


class Squares(torch.nn.Module):
    """Finds the bright square in an image: its box, its mask, and a score that says at which size it looked."""

    def __init__(self):
        super().__init__()
        self.transform = torch.nn.Module()
        self.transform.min_size, self.transform.max_size = (32,), 64
        self.seen = []

    def forward(self, images):
        out = []
        for image in images:
            self.seen.append((self.transform.min_size, self.transform.max_size))
            mask = image[0] > 0.5
            y, x = torch.where(mask)
            corners = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            score = torch.tensor([self.transform.min_size[0] / 1000])
            out.append(
                {"boxes": corners[None], "scores": score, "labels": torch.tensor([0]), "masks": mask[None, None]}
            )
        return out


def test_the_best_of_all_sizes_stays():
    image = torch.zeros(3, 40, 60)
    image[:, 5:15, 10:30] = 1
    network = Squares()
    (found,) = detect(network, [image], Inference(sizes=(16, 48, 32), max_size=100, flip=True))
    assert network.seen == [((size,), 100) for size in (16, 16, 48, 48, 32, 32)]
    assert (network.transform.min_size, network.transform.max_size) == ((32,), 64)
    assert found["boxes"].tolist() == [[10, 5, 30, 15]]
    assert found["scores"].tolist() == pytest.approx([0.048])
    assert torch.equal(found["masks"][0, 0], image[0] > 0.5)


def test_mirrored_only_and_one_size():
    network = Squares()
    image = torch.zeros(3, 40, 60)
    image[:, 5:15, 10:30] = 1
    (found,) = detect(network, [image], Inference(flip=True))
    assert network.seen == [((32,), 64)] * 2
    assert found["boxes"].tolist() == [[10, 5, 30, 15]]
    network.seen.clear()
    detect(network, [image], Inference())
    assert len(network.seen) == 1


@torch.no_grad()
@pytest.mark.parametrize("build", [mask_rcnn, sparse_rcnn])
def test_a_network_at_its_own_size_gives_what_it_gives_alone(build):
    """Joining one pass with itself changes nothing but the suppression of double boxes."""
    torch.manual_seed(0)
    model = build("dgmn2_nano", 3, min_size=64, max_size=96, channels=32).eval()
    images = [torch.rand(3, 50, 90), torch.rand(3, 64, 64)]
    alone = model(images)
    joined = detect(model, images, Inference(sizes=(64,), max_size=96, overlap=1.0))
    for one, other in zip(alone, joined, strict=True):
        assert one.keys() == other.keys()
        order = one["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(other["scores"], one["scores"][order])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (0,)}, r"inference.sizes must be whole numbers of at least 1, got \[0\]"),
        ({"sizes": (5000,)}, r"inference.max_size must be at least the largest size, got 4000"),
        ({"overlap": 0.0}, r"inference.overlap must be above 0 and at most 1, got 0.0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Inference(**options)


def test_threads_do_not_change_each_others_sizes():
    """Another thread predicts at the network's own size while one looks at several."""
    model = retinanet("dgmn2_nano", 2, min_size=64, max_size=96).eval()
    image = torch.rand(3, 64, 96)
    with torch.no_grad():
        (alone,) = detect(model, [image], Inference())
        others = []

        def other_thread(*_):
            handle.remove()
            others.extend(detect(model, [image], Inference()))

        handle = model.backbone.register_forward_pre_hook(other_thread)
        detect(model, [image], Inference(sizes=(32,), max_size=48))
    assert torch.equal(others[0]["boxes"], alone["boxes"])
    assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)

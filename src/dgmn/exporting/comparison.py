"""Compares what a runtime computes from a file with what PyTorch does, on pictures that hold something."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgmn.about import Preprocessing
from dgmn.errors import InputError

LIMIT = 1e-3
"""Largest error of a file that is kept, relative to the largest result of a kind."""
_ROUNDS = 5


Run = Callable[[Tensor], Sequence[Tensor]]
"""Runs a file on a batch."""


class DifferenceError(Exception):
    """The runtime does not run the file, or computes something else."""


@dataclass(frozen=True)
class Comparison:
    """How a runtime and PyTorch compare.

    Attributes:
        sizes: the images: (B, H, W), of detectors (H, W).
        error: the largest difference, relative to the largest result of its kind; None if a detector found nothing in
            any image, so that there was nothing to compare.
        milliseconds: median time of the first images in the runtime.
        pytorch: the same in PyTorch.
    """

    sizes: tuple[tuple[int, ...], ...]
    error: float | None
    milliseconds: float
    pytorch: float


@functools.cache
def scene() -> tuple[Image.Image, str]:
    """A picture to compare on, and what it is."""
    try:
        from dgmn.quickstart.digits import Scenes

        pixels, _ = Scenes((192, 288), grid=(2, 3), digit_sizes=(52, 84), share=0.8).draw("train")
        return Image.fromarray(pixels), "a photograph with digits painted on it, of the quickstart"
    except ImportError:  # scikit-learn, which has the photograph, comes with training only
        random = np.random.default_rng(0)
        coarse = Image.fromarray(random.integers(0, 256, (12, 18, 3), np.uint8)).resize((288, 192))
        noisy = np.asarray(coarse) + random.normal(0, 10, (192, 288, 3))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), "noise (a photograph needs scikit-learn)"


def batches(picture: Image.Image, height: int, width: int, preprocessing: Preprocessing | None) -> list[Tensor]:
    """What the network takes, made of a picture at three sizes, and mirrored; the first is the example.

    Args:
        picture: the picture.
        height: height of the example.
        width: width of the example.
        preprocessing: how a batch (B, 3, H, W) is normalised; None makes images (3, H, W) in 0..1, for detectors.
    """
    other = (32 * max(1, height * 3 // 4 // 32), 32 * max(1, width * 5 // 4 // 32))
    odd = (height * 5 // 4 + 3, width * 3 // 4 + 2)  # sides that no stride divides
    found: list[Tensor] = []
    for count, (tall, wide) in ((1, (height, width)), (2, other), (1, odd)):
        pixels = np.asarray(picture.resize((wide, tall)), np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if preprocessing is None:
            found += [image.contiguous(), image.flip(-1)][: 1 if found else 2]
        else:
            mean, std = (torch.tensor(x)[:, None, None] for x in (preprocessing.mean, preprocessing.std))
            found.append(torch.stack([image, image.flip(-1)][:count]).sub(mean).div(std))
    return found


def compare(
    network: Callable[[Tensor], Any], opened: Callable[[], Run], given: Sequence[Tensor], runtime: str
) -> Comparison:
    """Runs a file and the network on every batch.

    Args:
        network: the network.
        opened: opens the file.
        given: the batches.
        runtime: what runs the file, for messages.

    Raises:
        DifferenceError: the file, or the network, does not run, or the results differ.
        InputError: the runtime is not installed.
    """
    try:
        run = opened()
        results = [run(images) for images in given]
    except InputError:
        raise
    except Exception as error:
        raise DifferenceError(f"{runtime} does not run it: {said(error)}") from error
    distances: list[float] = []
    for images, got in zip(given, results, strict=True):
        try:
            wanted = network(images)
        except Exception as error:  # whatever a network says about a size that it does not take
            raise DifferenceError(f"PyTorch does not run it: {said(error)}") from error
        distance: float | None
        if isinstance(wanted, tuple):
            distance = _distance(got, wanted, images.shape[-2:])
        elif got[0].shape == wanted.shape:
            distance = float((got[0] - wanted).abs().amax() / wanted.abs().amax().clamp_min(1e-30))
        else:
            raise DifferenceError(f"{runtime} gives {tuple(got[0].shape)} instead of {tuple(wanted.shape)}")
        if distance is None:
            continue
        if not distance <= LIMIT:
            raise DifferenceError(f"{runtime}'s results differ by {distance:.1e}, more than {LIMIT:.0e}")
        distances.append(distance)
    ours, theirs = milliseconds(lambda: run(given[0]), lambda: network(given[0]))
    sizes = tuple((*images.shape[:-3], *images.shape[-2:]) for images in given)
    return Comparison(sizes, max(distances, default=None), ours, theirs)


def said(error: Exception) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _distance(got: Sequence[Tensor], wanted: Sequence[Tensor], size: Sequence[int]) -> float | None:
    """How far any object of a kind is from the closest of the other: corners in images, scores, and masks.

    The order of the objects does not matter, because equal scores have none. Nor do objects at the end of the list,
    whose scores are those of objects that just did not get into it. None: there are no others.
    """
    sides = torch.tensor([size[1], size[0]] * 2)

    def numbers(objects: Sequence[Tensor]) -> Tensor:
        boxes, scores, labels, *masks = objects
        # Other labels are a thousand images away.
        columns = [boxes / sides, scores[:, None], 1e3 * labels[:, None], *(mask.flatten(1) for mask in masks)]
        return torch.cat(columns, 1).double()

    if min(len(got[1]), len(wanted[1])) == 0:
        return None if len(got[1]) == len(wanted[1]) else math.inf
    one, other = numbers(got), numbers(wanted)
    distances = torch.cdist(one, other, p=torch.inf)
    lowest = max(float(got[1].min()), float(wanted[1].min())) + LIMIT
    nearest = [distances.amin(1 - dim)[objects[1] > lowest] for dim, objects in ((0, got), (1, wanted))]
    return max((float(x.max()) for x in nearest if len(x)), default=None)


def milliseconds(*runs: Callable[[], object]) -> list[float]:
    """Median times. The runs take turns, so that a slower clock affects all."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS):
        for run, of in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            of.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(of) for of in times]

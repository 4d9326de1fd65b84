"""scikit-learn's 1,797 handwritten digits, three fifths of them for training."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SPLITS = ("train", "train", "train", "val", "test")  # of every five images of a digit


def digits() -> Iterator[tuple[str, int, int, NDArray[np.uint8]]]:
    """Split, digit, number and image (8, 8) of every one."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for digit in range(10):
        for rank, index in enumerate(np.flatnonzero(data.target == digit)):
            pixels = (data.images[index] * (255 / 16)).astype(np.uint8)
            yield _SPLITS[rank % len(_SPLITS)], digit, int(index), pixels


def enlarged(pixels: NDArray[np.uint8], size: int) -> Image.Image:
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)

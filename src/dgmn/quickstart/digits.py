"""scikit-learn's 1,797 handwritten digits, alone and in scenes; three fifths of them are for training."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SPLITS = ("train", "train", "train", "val", "test")  # the splits of every five images of a digit


def digits() -> Iterator[tuple[str, int, int, NDArray[np.uint8]]]:
    """Gives the split, digit, number and pixels (8, 8) of every image."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for digit in range(10):
        for rank, index in enumerate(np.flatnonzero(data.target == digit)):
            pixels = (data.images[index] * (255 / 16)).astype(np.uint8)
            yield _SPLITS[rank % len(_SPLITS)], digit, int(index), pixels


def enlarged(pixels: NDArray[np.uint8], size: int) -> Image.Image:
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


class Scenes:
    """Paints digits on parts of photographs, in cells of a grid, so that no digit covers another.

    Args:
        size: height and width of a scene.
        grid: number of rows and columns.
        digit_sizes: smallest and largest side of a digit, in pixels.
        share: probability that a cell has a digit.
        photos: photographs (H, W, 3); None takes the two that come with scikit-learn.
    """

    def __init__(
        self,
        size: tuple[int, int],
        grid: tuple[int, int],
        digit_sizes: tuple[int, int],
        share: float = 1.0,
        photos: Sequence[NDArray[np.uint8]] | None = None,
    ) -> None:
        from sklearn.datasets import load_sample_images

        self.size = size
        self.grid = grid
        self.digit_sizes = digit_sizes
        self.share = share
        self._random = np.random.default_rng(0)
        self._photos = load_sample_images().images if photos is None else photos
        self._glyphs: dict[str, list[tuple[int, NDArray[np.uint8]]]] = {name: [] for name in set(_SPLITS)}
        for split, digit, _, pixels in digits():
            self._glyphs[split].append((digit, pixels))

    def draw(self, split: str) -> tuple[NDArray[np.uint8], list[tuple[int, NDArray[np.bool_]]]]:
        """Draws a scene (H, W, 3) of "train", "val" or "test"; also returns its digits with their masks (H, W)."""
        random = self._random
        height, width = self.size
        photo = self._photos[int(random.integers(len(self._photos)))]
        # The right third of a photograph is for validation and test.
        edge = photo.shape[1] * 2 // 3
        left, right = (0, edge - width) if split == "train" else (edge, photo.shape[1] - width)
        x, y = int(random.integers(left, right + 1)), int(random.integers(0, photo.shape[0] - height + 1))
        image = photo[y : y + height, x : x + width].copy()
        things = []
        cell = (height // self.grid[0], width // self.grid[1])
        for row in range(self.grid[0]):
            for column in range(self.grid[1]):
                if self.share < 1 and random.random() >= self.share:
                    continue
                digit, pixels = self._glyphs[split][random.integers(len(self._glyphs[split]))]
                size = int(random.integers(self.digit_sizes[0], self.digit_sizes[1] + 1))
                ink = np.asarray(enlarged(pixels, size), np.float32)[..., None] / 255
                left = column * cell[1] + int(random.integers(0, cell[1] + 1 - size))
                top = row * cell[0] + int(random.integers(0, cell[0] - size))
                here = (slice(top, top + size), slice(left, left + size))
                color = random.uniform(160, 255, 3) if image[here].mean() < 128 else random.uniform(0, 80, 3)
                image[here] = (image[here] * (1 - ink) + color * ink).astype(np.uint8)
                mask = np.zeros(self.size, bool)
                mask[here] = ink[..., 0] > 0.4
                things.append((digit, mask))
        return image, things

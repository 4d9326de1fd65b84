"""Draws the example images of `dgmn app`: scikit-learn's digits, alone and on drawn landscapes.

uv run python docs/scripts/app_examples.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from dgmn.quickstart.digits import Scenes, digits, enlarged

OUT = Path(__file__).parents[2] / "src/dgmn/app/examples"


def landscape(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A sky with a sun over three rows of hills, with the grain of a photograph."""
    y, x = np.mgrid[:height, :width] / height
    sky = np.stack([0.45 + 0.4 * y, 0.6 + 0.25 * y, 0.9 - 0.1 * y], -1)
    sun = np.exp(-((x - random.uniform(0.2, width / height - 0.2)) ** 2 + (y - 0.2) ** 2) / 0.006)
    picture = sky + sun[..., None] * (0.5, 0.4, 0.0)
    for i, color in enumerate(((0.45, 0.55, 0.65), (0.3, 0.45, 0.35), (0.2, 0.35, 0.18))):
        waves = sum(random.uniform(0.01, 0.06) * np.sin(k * 2.5 * x + random.uniform(0, 6)) for k in (1, 2, 5))
        shade = 1 - 0.35 * (y - 0.4) + 0.08 * np.sin(40 * (x + 2 * y) + 3 * np.sin(9 * x))
        picture = np.where((y > 0.42 + 0.17 * i + waves)[..., None], shade[..., None] * color, picture)
    return (255 * (picture + random.normal(0, 0.025, picture.shape)).clip(0, 1)).astype(np.uint8)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    pixels = next(pixels for split, digit, _, pixels in digits() if (split, digit) == ("test", 3))
    enlarged(pixels, 32).convert("RGB").save(OUT / "a_digit.png")
    for name, size, grid, sides, share in (
        ("two_digits", (64, 96), (1, 2), (36, 48), 1.0),
        ("a_scene", (96, 144), (2, 3), (26, 42), 0.7),
        ("a_landscape", (384, 512), (3, 4), (70, 110), 0.7),
    ):
        photos = [landscape(size[0], 3 * size[1] + 6, random) for _ in range(2)]
        scene, _ = Scenes(size, grid, sides, share, photos=photos).draw("test")
        Image.fromarray(scene).quantize(128).convert("RGB").quantize(128).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

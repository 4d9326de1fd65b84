"""Colours that differ, for classes that nobody has given colours."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]

_FIRST = (214, 39, 40)
_STEP = 17  # between the values of a channel: 16 values, from 0 to 255
_DARKEST, _LIGHTEST = 40, 85  # lightness in 0..100: darker ones are lost on dark images, lighter ones on white paper
# Linear RGB of sRGB to XYZ, divided by the white of D65.
_TO_XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2127, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]])


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Colours of which each is as far as possible from all before it, in CIELAB, where distances are what eyes see.

    The first colours are the same for every `count`. Two of 10 colours differ by at least 50, two of 30 by 30, two of
    100 by 15; 2 can just be told apart. From the 2,712th on, colours come again.
    """
    colors = _farthest(min(-(-count // 64) * 64, 2711))  # in steps, so that few lists are kept
    return tuple(colors[i % len(colors)] for i in range(count))


@cache
def _farthest(count: int) -> tuple[Color, ...]:
    values = np.arange(0, 256, _STEP)
    candidates = np.stack(np.meshgrid(values, values, values, indexing="ij"), -1).reshape(-1, 3)
    places = _lab(candidates)
    usable = (places[:, 0] >= _DARKEST) & (places[:, 0] <= _LIGHTEST)
    candidates, places = candidates[usable], places[usable]
    chosen: list[Color] = [_FIRST]
    distance = np.linalg.norm(places - _lab(np.array([_FIRST])), axis=1)
    while len(chosen) < count:
        farthest = int(distance.argmax())
        red, green, blue = candidates[farthest].tolist()
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(places - places[farthest], axis=1))
    return tuple(chosen)


def _lab(colors: NDArray[np.int64]) -> NDArray[np.float64]:
    """CIELAB of colours (N, 3) of sRGB."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)

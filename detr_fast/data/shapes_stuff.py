"""Stuff behind generated shapes: the background in one or two regions, each with a pattern."""

import math

import numpy as np

PATTERNS = ("plain", "stripes", "checks")
_CONTRAST = 26.0
_PERIOD = (7.0, 10.0)


def draw_stuff(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Draws patterns onto a background.

    Args:
        rng: a generator of its own, so that the shapes drawn later are those of a scene without.
        image: float32 (H, W, 3), changed in place.

    Returns:
        int64 (H, W): the place in `PATTERNS` of each pixel's pattern.
    """
    height, width = image.shape[:2]
    first, second = rng.permutation(len(PATTERNS))[:2]
    if rng.random() < 0.25:
        second = first
    # A line through the middle part of the image, at any angle.
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:height, :width]
    row, column = rng.uniform(0.3, 0.7, 2) * (height, width)
    side = (x - column) * math.cos(angle) + (y - row) * math.sin(angle) > 0
    patterns = np.where(side, first, second)
    for pattern in {int(first), int(second)}:
        image += np.where(patterns == pattern, _pattern(rng, pattern, y, x), 0)[..., None]
    return patterns


def _pattern(rng: np.random.Generator, pattern: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Brightness that a pattern adds, float32 (H, W)."""
    angle = rng.uniform(0, math.pi)
    period = rng.uniform(*_PERIOD)
    phase = rng.uniform(0, 2 * math.pi, 2)
    turn = 2 * math.pi / period
    along = np.sin((x * math.cos(angle) + y * math.sin(angle)) * turn + phase[0])
    across = np.sin((y * math.cos(angle) - x * math.sin(angle)) * turn + phase[1])
    wave = {"plain": 0 * along, "stripes": along, "checks": along * across}[PATTERNS[pattern]]
    return (np.sign(wave) * _CONTRAST).astype(np.float32)

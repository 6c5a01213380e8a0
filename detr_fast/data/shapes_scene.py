"""Generated pictures: coloured shapes on textured backgrounds, and where each of them is visible.

Every scene is a pure function of `(seed, index)`. No object is hidden by more than half.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .label_map import LabelMap
from .shapes_stuff import PATTERNS, draw_stuff

SHAPES_LABEL_MAP = LabelMap(
    ids=(1, 2, 3, 4, 5, 6), names=("circle", "square", "triangle", "star", "cross", "ring")
)
# The shapes keep the indices that they have without stuff.
SHAPES_PANOPTIC_LABEL_MAP = LabelMap(
    (*SHAPES_LABEL_MAP.ids, 7, 8, 9), (*SHAPES_LABEL_MAP.names, *PATTERNS), frozenset({7, 8, 9})
)

# Edges are smoothed by drawing at twice the size and averaging.
_SUPERSAMPLING = 2
_MIN_VISIBLE = 0.5
_PLACEMENT_ATTEMPTS = 20
# Small enough for a CPU to learn from: 8 x 8 tokens at a stride of 8. Of one size, so that a small
# model need not also learn what padding does to its features.
SIDE = (64, 64)
OBJECTS = (1, 3)


class SceneObject(NamedTuple):
    """One object of a scene.

    Attributes:
        label: Index into `SHAPES_LABEL_MAP`.
        mask: Visible pixels, bool (H, W).
    """

    label: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box of the visible pixels: x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
        return _bounds(self.mask)


class Scene(NamedTuple):
    """A rendered picture, uint8 (H, W, 3), and its objects from back to front.

    `stuff` are the visible parts of the background, with labels in `SHAPES_PANOPTIC_LABEL_MAP`;
    empty where it was not asked for.
    """

    image: np.ndarray
    objects: list[SceneObject]
    stuff: tuple[SceneObject, ...] = ()


def render_scene(
    seed: int,
    index: int,
    side: tuple[int, int] = SIDE,
    objects: tuple[int, int] = OBJECTS,
    stuff: bool = False,
) -> Scene:
    """Renders scene `index` of the series `seed`.

    Args:
        seed: Series; two series share no scene.
        index: Scene within the series.
        side: Smallest and largest side in pixels, inclusive; height and width are drawn apart.
        objects: Smallest and largest number of objects, inclusive. Fewer are placed where one more
            would hide another by more than half.
        stuff: Draw patterns on the background, and return where. The objects are the same.

    Returns:
        The scene; the same for the same arguments on every machine with the same Pillow.
    """
    rng = np.random.default_rng((seed, index))
    height, width = (int(value) for value in rng.integers(side[0], side[1], 2, endpoint=True))
    image = _background(rng, height, width)
    patterns = None
    if stuff:
        # A generator of its own leaves the objects as they are without stuff.
        patterns = draw_stuff(np.random.default_rng((seed, index, 1)), image)
    labels: list[int] = []
    areas: list[int] = []
    visible: list[np.ndarray] = []
    for _ in range(int(rng.integers(objects[0], objects[1], endpoint=True))):
        placed = _place(rng, height, width, areas, visible)
        if placed is None:
            continue
        label, coverage = placed
        solid = coverage > 127
        visible = [mask & ~solid for mask in visible] + [solid]
        labels.append(label)
        areas.append(int(solid.sum()))
        _paint(rng, image, coverage)
    return Scene(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        [SceneObject(label, mask) for label, mask in zip(labels, visible, strict=True)],
        () if patterns is None else _visible_stuff(patterns, visible),
    )


def _visible_stuff(patterns: np.ndarray, visible: list[np.ndarray]) -> tuple[SceneObject, ...]:
    free = ~np.logical_or.reduce([np.zeros(patterns.shape, dtype=bool), *visible])
    parts = ((int(pattern), (patterns == pattern) & free) for pattern in np.unique(patterns))
    first = len(SHAPES_LABEL_MAP)
    return tuple(SceneObject(first + pattern, mask) for pattern, mask in parts if mask.any())


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Muted colour clouds under fine grain, float32 (height, width, 3)."""
    cells = rng.uniform(-45, 45, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3))
    clouds = np.clip(rng.uniform(70, 185, 3) + cells, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC)
    deviation = np.float32(rng.uniform(2, 10))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * deviation
    return np.asarray(smooth, dtype=np.float32) + grain


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    areas: list[int],
    visible: list[np.ndarray],
) -> tuple[int, np.ndarray] | None:
    """A label and a coverage map, uint8 (height, width), hiding no earlier object too much."""
    for _ in range(_PLACEMENT_ATTEMPTS):
        label = int(rng.integers(len(SHAPES_LABEL_MAP.names)))
        radius = rng.uniform(0.2, 0.36) * min(height, width)
        centre = rng.uniform((radius, radius), (width - radius, height - radius))
        coverage = _rasterise(rng, label, radius, centre, height, width)
        solid = coverage > 127
        if all(
            np.count_nonzero(seen & ~solid) >= _MIN_VISIBLE * area
            for area, seen in zip(areas, visible, strict=True)
        ):
            return label, coverage
    return None


def _rasterise(
    rng: np.random.Generator,
    label: int,
    radius: float,
    centre: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    scale = _SUPERSAMPLING
    angle = rng.uniform(0, 2 * math.pi)
    stretch = np.array([1.0, rng.uniform(0.75, 1.0)])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    canvas = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for fill, outline in _outlines(SHAPES_LABEL_MAP.names[label]):
        points = ((outline * stretch) @ turn.T * radius + centre) * scale
        draw.polygon([tuple(point) for point in points.tolist()], fill=fill)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def _outlines(name: str) -> list[tuple[int, np.ndarray]]:
    """Polygons of a shape in the unit circle, each with its fill: 255 adds, 0 cuts out."""
    if name == "circle":
        return [(255, _regular(40))]
    if name == "ring":
        return [(255, _regular(40)), (0, 0.55 * _regular(40))]
    if name == "square":
        return [(255, _regular(4))]
    if name == "triangle":
        return [(255, _regular(3))]
    if name == "star":
        points = _regular(10)
        points[1::2] *= 0.42
        return [(255, points)]
    if name == "cross":
        arm, end = 0.3, 0.95
        bar = np.array([(-end, -arm), (end, -arm), (end, arm), (-end, arm)])
        return [(255, bar), (255, bar[:, ::-1])]
    raise ValueError(f"no outline for shape '{name}'")


def _regular(corners: int) -> np.ndarray:
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack((np.cos(angles), np.sin(angles)), 1)


def _paint(rng: np.random.Generator, image: np.ndarray, coverage: np.ndarray) -> None:
    """Paints a saturated colour with slight shading onto `image` where `coverage` says."""
    colour = np.full(3, rng.uniform(0, 70), dtype=np.float32)
    first, second = rng.permutation(3)[:2]
    colour[first] = rng.uniform(190, 255)
    colour[second] = rng.uniform(0, 255)
    shade = np.linspace(0.85, 1.15, image.shape[0], dtype=np.float32)[:: rng.choice((-1, 1))]
    x0, y0, x1, y1 = _bounds(coverage > 0)
    alpha = coverage[y0:y1, x0:x1, None] * np.float32(1 / 255)
    painted = image[y0:y1, x0:x1]
    painted += alpha * (colour * shade[y0:y1, None, None] - painted)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask that is not empty, x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

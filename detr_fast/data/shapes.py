"""Generated detection data: coloured shapes on textured backgrounds, in COCO's format.

Every scene is a pure function of `(seed, index)`: nothing is downloaded, nothing is written unless
`write_shapes` is asked to. The annotated box is that of an object's visible pixels, as a COCO
annotator would draw it, and no object is hidden by more than half.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .label_map import LabelMap

SHAPES_LABEL_MAP = LabelMap(
    ids=(1, 2, 3, 4, 5, 6), names=("circle", "square", "triangle", "star", "cross", "ring")
)

# Edges are smoothed by drawing at twice the size and averaging.
_SUPERSAMPLING = 2
_MIN_VISIBLE = 0.5
_PLACEMENT_ATTEMPTS = 20
# Small enough for a CPU to learn from: 8 x 8 tokens at a stride of 8. Of one size, so that a small
# model need not also learn what padding does to its features.
_SIDE = (64, 64)
_OBJECTS = (1, 3)


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
    """A rendered picture, uint8 (H, W, 3), and its objects from back to front."""

    image: np.ndarray
    objects: list[SceneObject]


def render_scene(
    seed: int,
    index: int,
    side: tuple[int, int] = _SIDE,
    objects: tuple[int, int] = _OBJECTS,
) -> Scene:
    """Renders scene `index` of the series `seed`.

    Args:
        seed: Series; two series share no scene.
        index: Scene within the series.
        side: Smallest and largest side in pixels, inclusive; height and width are drawn apart.
        objects: Smallest and largest number of objects, inclusive. Fewer are placed where one more
            would hide another by more than half.

    Returns:
        The scene; the same for the same arguments on every machine with the same Pillow.
    """
    rng = np.random.default_rng((seed, index))
    height, width = (int(value) for value in rng.integers(side[0], side[1], 2, endpoint=True))
    image = _background(rng, height, width)
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
    )


class _Sample(NamedTuple):
    """What a scene leaves behind for training; its masks would be most of its memory."""

    image: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    areas: torch.Tensor


class ShapesDataset(Dataset):
    """Generated scenes as a detection data set, rendered on first access and kept in memory.

    Args:
        length: Number of images.
        seed: Series of scenes; use different ones for training and validation.
        transform: Called as `transform(image, target)` with a tv_tensors image, uint8 (3, H, W),
            and a target whose boxes are tv_tensors in pixel xyxy; see `data.transforms`.
        side: Smallest and largest image side in pixels.
        objects: Smallest and largest number of objects an image.

    Raises:
        ValueError: A negative length, or an empty range of sides or numbers of objects.
    """

    label_map = SHAPES_LABEL_MAP

    def __init__(
        self,
        length: int,
        seed: int = 0,
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
        side: tuple[int, int] = _SIDE,
        objects: tuple[int, int] = _OBJECTS,
    ) -> None:
        if length < 0:
            raise ValueError(f"length of a shapes data set is {length}; expected 0 or more")
        if not 32 <= side[0] <= side[1]:
            raise ValueError(f"side is {side}; expected (smallest, largest), both at least 32 px")
        if not 0 <= objects[0] <= objects[1]:
            raise ValueError(f"objects is {objects}; expected (fewest, most), both at least 0")
        self.length = length
        self.seed = seed
        self.transform = transform
        self.side = side
        self.objects = objects
        self._samples: dict[int, _Sample] = {}

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        """The scene behind item `index`.

        Raises:
            IndexError: `index` is outside the data set.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"shapes image {index} of a set of {self.length}")
        return render_scene(self.seed, index, self.side, self.objects)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        sample = self._sample(index)
        height, width = sample.image.shape[-2:]
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                sample.boxes.clone(), format="XYXY", canvas_size=(height, width)
            ),
            "labels": sample.labels.clone(),
            "image_id": torch.tensor([index]),
            "area": sample.areas.clone(),
            "iscrowd": torch.zeros_like(sample.labels),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        image = tv_tensors.Image(sample.image.clone())
        if self.transform is not None:
            return self.transform(image, target)
        return image, target

    def _sample(self, index: int) -> _Sample:
        if index not in self._samples:
            image, objects = self.scene(index)
            boxes = torch.tensor([o.box for o in objects], dtype=torch.float32)
            self._samples[index] = _Sample(
                torch.from_numpy(image).permute(2, 0, 1).contiguous(),
                boxes.reshape(len(objects), 4),
                torch.tensor([o.label for o in objects], dtype=torch.int64),
                torch.tensor([float(o.mask.sum()) for o in objects]),
            )
        return self._samples[index]

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The whole set's annotations as a COCO detection JSON dict."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(self.length):
            sample = self._sample(index)
            height, width = sample.image.shape[-2:]
            images.append(
                {"id": index, "file_name": _file_name(index), "height": height, "width": width}
            )
            for (x0, y0, x1, y1), label, area in zip(
                sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist(), strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": self.label_map.category_id(label),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": area,
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.label_map.ids, self.label_map.names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


def write_shapes(
    root: str | Path, train: int = 1000, val: int = 200, seed: int = 0, **scene_options: Any
) -> Path:
    """Writes training and validation shapes to disk in COCO's layout.

    Args:
        root: Folder to write `train2017/`, `val2017/` and `annotations/` into; made if missing.
        train: Number of training images, series `seed`.
        val: Number of validation images, series `seed + 1`.
        seed: Series of the training images.
        **scene_options: `side` and `objects` of `ShapesDataset`.

    Returns:
        `root` as a path, to be passed on as `coco_path`.
    """
    root = Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, length, series in (("train", train, seed), ("val", val, seed + 1)):
        dataset = ShapesDataset(length, series, **scene_options)
        folder = root / f"{split}2017"
        folder.mkdir(exist_ok=True)
        for index in range(length):
            Image.fromarray(dataset.scene(index).image).save(folder / _file_name(index))
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(dataset.ground_truth()))
    return root


def _file_name(index: int) -> str:
    return f"{index:012d}.png"


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

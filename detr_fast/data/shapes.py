"""Generated detection and panoptic data: coloured shapes on textured backgrounds, in COCO's format.

Nothing is downloaded, and nothing is written unless `write_shapes` is asked to. The annotated box
is that of an object's visible pixels, as a COCO annotator would draw it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .instance_masks import encode_mask
from .panoptic_png import LARGEST_ID, write_panoptic_png
from .shapes_scene import (
    OBJECTS,
    SHAPES_LABEL_MAP,
    SHAPES_PANOPTIC_LABEL_MAP,
    SIDE,
    Scene,
    render_scene,
)


class _Sample(NamedTuple):
    """What a scene leaves behind for training; its masks would be most of its memory.

    `ids` are uint8 (H, W): 0 where there is nothing, i + 1 where segment i is visible.
    """

    image: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    areas: torch.Tensor
    ids: np.ndarray


class ShapesDataset(Dataset):
    """Generated scenes as a detection data set, rendered on first access and kept in memory.

    Args:
        length: Number of images.
        seed: Series of scenes; use different ones for training and validation.
        transform: Called as `transform(image, target)` with a tv_tensors image, uint8 (3, H, W),
            and a target whose boxes are tv_tensors in pixel xyxy; see `data.transforms`.
        side: Smallest and largest image side in pixels.
        objects: Smallest and largest number of objects an image.
        masks: Whether targets have `masks`, uint8 (n, H, W) of the visible pixels.
        stuff: Whether the background has patterns that are segments too, with masks and classes
            of `SHAPES_PANOPTIC_LABEL_MAP`.

    Raises:
        ValueError: A negative length, or an empty range of sides or numbers of objects.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
        side: tuple[int, int] = SIDE,
        objects: tuple[int, int] = OBJECTS,
        masks: bool = False,
        stuff: bool = False,
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
        self.masks = masks or stuff
        self.stuff = stuff
        self.label_map = SHAPES_PANOPTIC_LABEL_MAP if stuff else SHAPES_LABEL_MAP
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
        return render_scene(self.seed, index, self.side, self.objects, self.stuff)

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
        if self.masks:
            numbers = np.arange(1, len(sample.labels) + 1)[:, None, None]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(sample.ids == numbers).byte())
        image = tv_tensors.Image(sample.image.clone())
        if self.transform is not None:
            return self.transform(image, target)
        return image, target

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` before the transform."""
        return tuple(self._sample(index).image.shape[-2:])

    def _sample(self, index: int) -> _Sample:
        if index not in self._samples:
            image, objects, stuff = self.scene(index)
            objects = [*objects, *stuff]
            boxes = torch.tensor([o.box for o in objects], dtype=torch.float32)
            ids = np.zeros(image.shape[:2], dtype=np.uint8)
            for number, segment in enumerate(objects, start=1):
                ids[segment.mask] = number
            self._samples[index] = _Sample(
                torch.from_numpy(image).permute(2, 0, 1).contiguous(),
                boxes.reshape(len(objects), 4),
                torch.tensor([o.label for o in objects], dtype=torch.int64),
                torch.tensor([float(o.mask.sum()) for o in objects]),
                ids,
            )
        return self._samples[index]

    def ground_truth(self, masks: bool = False) -> dict[str, list[dict[str, Any]]]:
        """The whole set's objects as a COCO detection JSON dict, with `masks` as run lengths."""
        annotations: list[dict[str, Any]] = []
        for index in range(self.length):
            sample = self._sample(index)
            for number, ((x0, y0, x1, y1), label, area) in enumerate(
                zip(
                    *(sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist()),
                    strict=True,
                ),
                start=1,
            ):
                if not self.label_map.is_thing(label):
                    continue
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": self.label_map.category_id(label),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": area,
                        "iscrowd": 0,
                        **({"segmentation": encode_mask(sample.ids == number)} if masks else {}),
                    }
                )
        categories = list(SHAPES_LABEL_MAP.categories)
        return {"images": self._images(), "annotations": annotations, "categories": categories}

    def panoptic_ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The whole set's segments as a COCO panoptic JSON dict."""
        annotations = []
        for index in range(self.length):
            sample = self._sample(index)
            segments = [
                {
                    "id": int(_segment_ids(number)),
                    "category_id": self.label_map.category_id(label),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(area),
                    "iscrowd": 0,
                }
                for number, ((x0, y0, x1, y1), label, area) in enumerate(
                    zip(
                        *(sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist()),
                        strict=True,
                    ),
                    start=1,
                )
            ]
            annotations.append(
                {"image_id": index, "file_name": _file_name(index), "segments_info": segments}
            )
        categories = list(self.label_map.categories)
        return {"images": self._images(), "annotations": annotations, "categories": categories}

    def read_ids(self, image_id: int) -> np.ndarray:
        """Segment ids int32 (H, W) of an image, as in `panoptic_ground_truth`."""
        return _segment_ids(self._sample(image_id).ids)

    def _images(self) -> list[dict[str, Any]]:
        sizes = [self.image_size(index) for index in range(self.length)]
        return [
            {"id": index, "file_name": _file_name(index), "height": height, "width": width}
            for index, (height, width) in enumerate(sizes)
        ]


def write_shapes(
    root: str | Path, train: int = 1000, val: int = 200, seed: int = 0, **scene_options: Any
) -> Path:
    """Writes training and validation shapes to disk in COCO's layout.

    With `stuff` the panoptic annotations are written too, and with `masks` those of instances have
    run lengths.

    Args:
        root: Folder to write `train2017/`, `val2017/` and `annotations/` into; made if missing.
        train: Number of training images, series `seed`.
        val: Number of validation images, series `seed + 1`.
        seed: Series of the training images.
        **scene_options: `side`, `objects`, `masks` and `stuff` of `ShapesDataset`.

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
        path.write_text(json.dumps(dataset.ground_truth(masks=dataset.masks)))
        if dataset.stuff:
            folder = root / f"panoptic_{split}2017"
            folder.mkdir(exist_ok=True)
            for index in range(length):
                write_panoptic_png(folder / _file_name(index), dataset.read_ids(index))
            path = root / "annotations" / f"panoptic_{split}2017.json"
            path.write_text(json.dumps(dataset.panoptic_ground_truth()))
    return root


def _segment_ids(numbers):
    """Ids whose colours differ in every channel, as COCO's do: no mean of two is a third."""
    return np.asarray(numbers, dtype=np.int32) * 2_046_551 & LARGEST_ID


def _file_name(index: int) -> str:
    return f"{index:012d}.png"

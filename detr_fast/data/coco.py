"""Detection data in COCO's format: a folder of images and one JSON file."""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .images import ImageError, read_image, read_size
from .instance_masks import PackedSegmentations
from .label_map import COCO_LABEL_MAP, LabelMap

ON_ERROR = ("fail", "skip")
_Read = TypeVar("_Read")


class CocoDetection(Dataset):
    """Images and boxes of a COCO instances file.

    Annotations are treated as DETR does for training: crowds are left out, boxes are clipped to
    the image, and boxes that have no width or height then are left out (`checks.check_dataset`
    counts them). A missing `area` or `iscrowd` is computed; `info` and `licenses` are never needed,
    `segmentation` only for masks.

    Args:
        image_folder: where the JSON's `file_name`s are.
        annotation_file: JSON with `images`, `annotations` and `categories`.
        transform: called as `transform(image, target)` with a tv_tensors image, uint8 (3, H, W),
            and a target whose boxes are tv_tensors in pixel xyxy; see `data.transforms`.
        label_map: category ids <-> class indices; by default `default_label_map` of the JSON.
        on_error: what to do with an image that is missing or damaged: "fail" raises, naming file
            and image id; "skip" warns once and gives the next readable image in its place (which
            then occurs twice in an epoch; results are told apart by `image_id`).
        masks: whether targets have `masks`, a tv_tensors mask uint8 (n, H, W) in the order of the
            boxes.

    Raises:
        FileNotFoundError: the folder or the file is not there.
        ValueError: the JSON is malformed, or uses a category that the label map does not have, or
            an object has no mask where masks are asked for.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
        label_map: LabelMap | None = None,
        on_error: str = "fail",
        masks: bool = False,
    ):
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}; expected one of {', '.join(ON_ERROR)}.")
        self.image_folder = Path(image_folder)
        self.annotation_file = Path(annotation_file)
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"image folder {self.image_folder} is not there.")
        self.transform = transform
        self.on_error = on_error
        self.masks = masks
        content = read_coco_json(self.annotation_file)
        self.label_map = label_map or default_label_map(content["categories"])
        self._warned: set[int] = set()
        # Arrays, not the JSON's objects: touching the latter in forked workers would copy them.
        self._images = [_ImageEntry(entry) for entry in content["images"]]
        self._pack_annotations(content)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Image and target `index`; see the class for their form.

        Raises:
            IndexError: `index` is outside [0, len(self)).
            ImageError: the image cannot be read, or with "skip" no image can.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        index, image = self._read_or_skip(index, read_image)
        target = self._target(index, image.shape[-2], image.shape[-1])
        if self.transform is not None:
            return self.transform(image, target)
        return image, target

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` before the transform, without decoding it.

        Raises:
            ImageError: as when the image is read, where the annotations do not say its size.
        """
        return self._read_or_skip(index, read_size)[1]

    def ground_truth(self, masks: bool = False) -> dict[str, Any]:
        """The annotation file as a dict, with `area` and `iscrowd` filled in where they lack.

        With or without `masks` it has the `segmentation`s that the file has. Read anew at every
        call, so that the data set itself stays small in every worker.
        """
        return complete_annotations(read_coco_json(self.annotation_file))

    def _read_or_skip(self, index: int, read: Callable[..., _Read]) -> tuple[int, _Read]:
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            entry = self._images[candidate]
            try:
                path = self.image_folder / entry.file_name
                return candidate, read(path, entry.id, entry.size)
            except ImageError as error:
                if self.on_error == "fail":
                    raise
                if candidate not in self._warned:
                    self._warned.add(candidate)
                    warnings.warn(f"skipped: {error}", stacklevel=3)
        raise ImageError(f"none of the {len(self)} images in {self.image_folder} can be read.")

    def _target(self, index: int, height: int, width: int) -> dict[str, Any]:
        first, last = self._offsets[index], self._offsets[index + 1]
        boxes = torch.from_numpy(self._boxes[first:last].copy())
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=(height, width))
        target = {
            "boxes": boxes,
            "labels": torch.from_numpy(self._labels[first:last].copy())[keep],
            "image_id": torch.tensor([self._images[index].id]),
            "area": torch.from_numpy(self._areas[first:last].copy())[keep],
            "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        if self.masks:
            rows = (first + keep.nonzero().flatten()).tolist()
            target["masks"] = self._segmentations.masks(rows, height, width)
        return target

    def _pack_annotations(self, content: dict) -> None:
        names = {category["id"]: category.get("name") for category in content["categories"]}
        file_names = {entry.id: entry.file_name for entry in self._images}
        by_image: dict[int, list[tuple]] = {image_id: [] for image_id in file_names}
        for annotation in content["annotations"]:
            image_id = annotation["image_id"]
            if image_id not in by_image or annotation.get("iscrowd", 0):
                continue
            category_id = annotation["category_id"]
            if category_id not in self.label_map:
                self._raise_unknown(annotation, names, file_names[image_id])
            box = finite_box(annotation)
            if box is not None:
                label = self.label_map.index(category_id)
                by_image[image_id].append((box, label, annotation_area(annotation), annotation))
        # A repeated image id is an error of the check; here its annotations go to the first.
        rows = [by_image.pop(entry.id, []) for entry in self._images]
        self._offsets = np.cumsum([0] + [len(row) for row in rows])
        flat = [item for row in rows for item in row]
        self._boxes = np.array([box for box, *_ in flat], dtype=np.float32).reshape(-1, 4)
        self._labels = np.array([label for _, label, *_ in flat], dtype=np.int64)
        self._areas = np.array([area for _, _, area, _ in flat], dtype=np.float32)
        if self.masks:
            self._segmentations = PackedSegmentations(
                [annotation for *_, annotation in flat], str(self.annotation_file)
            )

    def _raise_unknown(self, annotation: dict, names: dict, file_name: str) -> None:
        category_id = annotation["category_id"]
        try:
            self.label_map.index(category_id, names.get(category_id))
        except ValueError as error:
            raise ValueError(
                f"{self.annotation_file}: annotation {annotation.get('id')} of image "
                f"{annotation['image_id']} ({file_name}): {error}"
            ) from None


def build_coco(
    coco_path: str | Path,
    split: str,
    transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
    label_map: LabelMap | None = None,
    on_error: str = "fail",
    masks: bool = False,
) -> CocoDetection:
    """The data set of one split in COCO's official layout.

    Images are in `train2017/` or `val2017/`, annotations in `annotations/instances_train2017.json`
    or `annotations/instances_val2017.json`; the year may be left out of both.

    Args:
        coco_path: the folder that holds them.
        split: "train", "val", or another name in that scheme.
        transform: see `CocoDetection`.
        label_map: see `CocoDetection`. By default every split takes that of the training
            categories, where there are some: a class absent from a split changes no index.
        on_error: see `CocoDetection`.
        masks: see `CocoDetection`.

    Raises:
        FileNotFoundError: what was looked for, and what is there.
        ValueError: see `CocoDetection`.
    """
    root = Path(coco_path)
    images = first_present(root, [f"{split}2017", split], Path.is_dir, "a folder of images")
    annotations = first_present(root, _annotation_names(split), Path.is_file, "annotations")
    dataset = CocoDetection(images, annotations, transform, label_map, on_error, masks)
    if label_map is None and dataset.label_map != COCO_LABEL_MAP and split != "train":
        train = [root / name for name in _annotation_names("train") if (root / name).is_file()]
        if train:
            categories = read_coco_json(train[0])["categories"]
            label_map = default_label_map(categories)
            dataset = CocoDetection(images, annotations, transform, label_map, on_error, masks)
    return dataset


def default_label_map(categories: list[dict]) -> LabelMap:
    """COCO's own layout for COCO's 80 categories, otherwise one index per category by id."""
    found = LabelMap.contiguous(categories)
    return COCO_LABEL_MAP if found.categories == COCO_LABEL_MAP.categories else found


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """Reads an annotation file and makes sure that it is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, or without the lists and keys that detection needs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} is not there.")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or truncated: {error}") from None
    keys = sorted(content) if isinstance(content, dict) else type(content).__name__
    needed = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "category_id"),
        "categories": ("id",),
    }
    for name, fields in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"{path} has no list '{name}'; expected COCO instances, found {keys}.")
        for position, entry in enumerate(content[name]):
            for field in fields:
                if not isinstance(entry, Mapping) or field not in entry:
                    raise ValueError(f"{path}: {name}[{position}] has no '{field}'.")
                if field.endswith("id") and type(entry[field]) is not int:
                    raise ValueError(
                        f"{path}: {name}[{position}] has {field} {entry[field]!r}; "
                        "expected an integer."
                    )
    return content


def complete_annotations(content: dict[str, Any]) -> dict[str, Any]:
    """Fills in what COCO evaluation needs and files may lack: `id`, `area`, `iscrowd`, `info`.

    Args:
        content: a COCO-format dict; its annotations are changed in place.

    Returns:
        `content`.
    """
    annotations = content["annotations"]
    if any("id" not in annotation for annotation in annotations):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    for annotation in annotations:
        annotation["area"] = annotation_area(annotation)
        annotation.setdefault("iscrowd", 0)
    content.setdefault("info", {})
    return content


def finite_box(annotation: Mapping) -> tuple[float, float, float, float] | None:
    """The annotation's xywh box in pixels, or None where it is not four finite numbers."""
    box = annotation.get("bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return None
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in box):
        return None
    return tuple(box)


def annotation_area(annotation: Mapping) -> float:
    """`area` of the annotation in square pixels, or that of its box where there is none."""
    area = annotation.get("area")
    if isinstance(area, (int, float)) and math.isfinite(area):
        return area
    box = finite_box(annotation)
    return 0.0 if box is None else box[2] * box[3]


class _ImageEntry:
    """What a data set keeps of one entry of `images`."""

    __slots__ = ("file_name", "id", "size")

    def __init__(self, entry: Mapping):
        self.id = entry["id"]
        self.file_name = entry["file_name"]
        height, width = entry.get("height"), entry.get("width")
        self.size = (height, width) if height and width else None


def _annotation_names(split: str) -> list[str]:
    return [f"annotations/instances_{split}2017.json", f"annotations/instances_{split}.json"]


def first_present(root: Path, names: list[str], present: Callable, what: str) -> Path:
    """The first of some paths below a folder that is there.

    Raises:
        FileNotFoundError: none is; says what was looked for, and what is there.
    """
    for name in names:
        if present(root / name):
            return root / name
    looked_for = ", ".join(str(root / name) for name in names)
    deepest = (root / names[0]).parent
    while not deepest.is_dir() and deepest != deepest.parent:
        deepest = deepest.parent
    found = sorted(entry.name for entry in deepest.iterdir())
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    raise FileNotFoundError(
        f"{what} not found: looked for {looked_for}; found in {deepest}: {shown or 'nothing'}."
    )

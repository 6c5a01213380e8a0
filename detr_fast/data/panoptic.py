"""COCO panoptic data: a folder of images, one of PNGs with segment ids, and one JSON file."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .coco import complete_annotations, first_present, read_coco_json
from .images import read_image, read_size
from .instance_masks import encode_mask, masks_to_boxes
from .label_map import COCO_PANOPTIC_LABEL_MAP, LabelMap
from .panoptic_png import PanopticError, read_panoptic_png


class CocoPanoptic(Dataset):
    """Images with a mask, a class and a box for every segment, things and stuff alike.

    Segments of crowds are learned like others, as in the original; segments without pixels are
    left out. Images and annotations belong together by `image_id`, not by their order.

    Args:
        image_folder: where the JSON's images are.
        map_folder: where the `file_name`s of its annotations are, PNGs of segment ids.
        annotation_file: JSON with `images`, `annotations` (with `segments_info`) and `categories`.
        transform: called as `transform(image, target)`, see `CocoDetection`; targets have `masks`.
        label_map: category ids <-> class indices; by default COCO's panoptic one where the JSON has
            exactly these categories, otherwise one index per category by id.
        instance_file: COCO instances JSON to measure box and mask AP against, as the original does;
            None derives instances from the segments of things.

    Raises:
        FileNotFoundError: a folder or the file is not there.
        PanopticError: an image without annotation, or a segment of an unknown category.
        ValueError: the JSON is malformed.
    """

    on_error = "fail"

    def __init__(
        self,
        image_folder: str | Path,
        map_folder: str | Path,
        annotation_file: str | Path,
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
        label_map: LabelMap | None = None,
        instance_file: str | Path | None = None,
    ):
        self.image_folder, self.map_folder = Path(image_folder), Path(map_folder)
        for folder in (self.image_folder, self.map_folder):
            if not folder.is_dir():
                raise FileNotFoundError(f"folder {folder} is not there.")
        self.annotation_file = Path(annotation_file)
        self.instance_file = instance_file
        self.transform = transform
        content = read_panoptic_json(self.annotation_file)
        self.label_map = label_map or panoptic_label_map(content["categories"])
        annotations = {a["image_id"]: a for a in content["annotations"]}
        self._entries = []
        for image in content["images"]:
            annotation = annotations.get(image["id"])
            if annotation is None:
                raise PanopticError(
                    f"{self.annotation_file}: image {image['id']} ({image['file_name']}) has no "
                    "annotation; give it one, with empty segments_info where nothing is labelled."
                )
            self._entries.append(self._entry(image, annotation))
        self._positions = {entry["id"]: i for i, entry in enumerate(self._entries)}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Image and target `index`.

        Raises:
            IndexError: `index` is outside [0, len(self)).
            ImageError: the image cannot be read.
            PanopticError: the map cannot be; see `read_panoptic_png`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        entry = self._entries[index]
        image = read_image(self.image_folder / entry["file_name"], entry["id"], entry["size"])
        ids = self._read_ids(entry, tuple(image.shape[-2:]))
        target = panoptic_target(entry["id"], ids, *entry["segments"])
        return (image, target) if self.transform is None else self.transform(image, target)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` before the transform, without decoding it.

        Raises:
            ImageError: the annotations do not say the size, nor does the file.
        """
        entry = self._entries[index]
        return read_size(self.image_folder / entry["file_name"], entry["id"], entry["size"])

    def read_ids(self, image_id: int) -> np.ndarray:
        """Segment ids int32 (H, W) of an image.

        Raises:
            PanopticError: see `read_panoptic_png`.
        """
        entry = self._entries[self._positions[image_id]]
        return self._read_ids(entry, entry["size"])

    def panoptic_ground_truth(self) -> dict[str, Any]:
        """The annotation file as a dict, read anew."""
        return read_panoptic_json(self.annotation_file)

    def ground_truth(self, masks: bool = False) -> dict[str, Any]:
        """COCO instances to measure boxes against, and with `masks` masks too."""
        if self.instance_file is not None:
            return complete_annotations(read_coco_json(self.instance_file))
        return instances_of(self.panoptic_ground_truth(), self.read_ids, masks)

    def _entry(self, image: Mapping, annotation: Mapping) -> dict[str, Any]:
        segments = annotation["segments_info"]
        labels = []
        for segment in segments:
            try:
                labels.append(self.label_map.index(segment["category_id"]))
            except ValueError as error:
                raise PanopticError(
                    f"{self.annotation_file}: segment {segment['id']} of image {image['id']} "
                    f"({annotation['file_name']}): {error}"
                ) from None
        size = (image.get("height"), image.get("width"))
        return {
            "id": image["id"],
            "file_name": image["file_name"],
            "map_name": annotation["file_name"],
            "size": size if all(size) else None,
            # Arrays, which forked workers share.
            "segments": (
                np.array([s["id"] for s in segments], dtype=np.int64),
                np.array(labels, dtype=np.int64),
                np.array([s.get("iscrowd", 0) for s in segments], dtype=np.int64),
            ),
        }

    def _read_ids(self, entry: Mapping, size: tuple[int, int] | None) -> np.ndarray:
        path = self.map_folder / entry["map_name"]
        return read_panoptic_png(path, entry["segments"][0].tolist(), size)


def build_coco_panoptic(
    coco_path: str | Path,
    split: str,
    transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
    label_map: LabelMap | None = None,
    coco_panoptic_path: str | Path | None = None,
) -> CocoPanoptic:
    """The data set of one split in COCO's official layout.

    Images are in `train2017/` or `val2017/` below `coco_path`, PNGs in `panoptic_train2017/` or
    `annotations/panoptic_train2017/` below `coco_panoptic_path`, beside
    `annotations/panoptic_train2017.json`; the year may be left out of all of them. AP is measured
    against `annotations/instances_val2017.json` where that is there.

    Args:
        coco_path: the folder of the images.
        split: "train", "val", or another name in that scheme.
        transform: see `CocoPanoptic`.
        label_map: see `CocoPanoptic`.
        coco_panoptic_path: the folder of the panoptic annotations; None for `coco_path`.

    Raises:
        FileNotFoundError: what was looked for, and what is there.
        PanopticError, ValueError: see `CocoPanoptic`.
    """
    root = Path(coco_path)
    panoptic = root if coco_panoptic_path is None else Path(coco_panoptic_path)
    names = [f"{split}2017", split]
    maps = [f"{folder}panoptic_{name}" for name in names for folder in ("", "annotations/")]
    annotations = [f"annotations/panoptic_{name}.json" for name in names]
    instances = [root / f"annotations/instances_{name}.json" for name in names]
    return CocoPanoptic(
        first_present(root, names, Path.is_dir, "a folder of images"),
        first_present(panoptic, maps, Path.is_dir, "a folder of panoptic PNGs"),
        first_present(panoptic, annotations, Path.is_file, "panoptic annotations"),
        transform,
        label_map,
        next((path for path in instances if path.is_file()), None),
    )


def panoptic_label_map(categories: Iterable[Mapping]) -> LabelMap:
    """COCO's own layout for COCO's 133 categories, otherwise one index per category by id."""
    found = LabelMap.contiguous(categories)
    same = found.categories == COCO_PANOPTIC_LABEL_MAP.categories
    return COCO_PANOPTIC_LABEL_MAP if same else found


def panoptic_target(
    image_id: int, ids: np.ndarray, segments: np.ndarray, labels: np.ndarray, crowds: np.ndarray
) -> dict[str, Any]:
    """The target of an image, in the form of `CocoDetection`'s with `masks`.

    Args:
        image_id: of the image.
        ids: segment ids (H, W).
        segments: id (n,) of each segment.
        labels: class index (n,) of each.
        crowds: whether each is a crowd, 0 or 1 (n,).
    """
    masks = torch.from_numpy(ids[None] == segments[:, None, None])
    areas = masks.flatten(1).sum(1)
    visible = areas > 0
    height, width = ids.shape
    return {
        "boxes": tv_tensors.BoundingBoxes(
            masks_to_boxes(masks[visible]), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.from_numpy(labels)[visible],
        "masks": tv_tensors.Mask(masks[visible].byte()),
        "image_id": torch.tensor([image_id]),
        "area": areas[visible].float(),
        "iscrowd": torch.from_numpy(crowds)[visible],
        "orig_size": torch.tensor([height, width]),
        "size": torch.tensor([height, width]),
    }


def instances_of(
    content: Mapping[str, Any], read_ids: Callable[[int], np.ndarray], masks: bool
) -> dict[str, Any]:
    """COCO instances of the things of a panoptic annotation; segments without pixels left out."""
    things = {c["id"] for c in content["categories"] if c.get("isthing", 1)}
    annotations = []
    for annotation in content["annotations"]:
        image_id = annotation["image_id"]
        segments = [s for s in annotation["segments_info"] if s["category_id"] in things]
        complete = all("bbox" in s and "area" in s for s in segments) and not masks
        ids = None if complete else read_ids(image_id)
        for segment in segments:
            entry = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": segment["category_id"],
                "iscrowd": segment.get("iscrowd", 0),
            }
            if ids is None:
                entry |= {"bbox": segment["bbox"], "area": segment["area"]}
            else:
                mask = ids == segment["id"]
                if not mask.any():
                    continue
                x0, y0, x1, y1 = masks_to_boxes(torch.from_numpy(mask[None]))[0].tolist()
                entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(mask.sum())}
                if masks:
                    entry["segmentation"] = encode_mask(mask)
            annotations.append(entry)
    return {
        "info": {},
        "images": list(content["images"]),
        "annotations": annotations,
        "categories": [c for c in content["categories"] if c["id"] in things],
    }


def read_panoptic_json(path: str | Path) -> dict[str, Any]:
    """Reads a panoptic annotation file and makes sure that it is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, or without the lists and keys that panoptic segmentation needs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} is not there.")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or truncated: {error}") from None
    needed = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "file_name", "segments_info"),
        "categories": ("id",),
    }
    for name, fields in needed.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path} has no list '{name}'; expected COCO panoptic annotations.")
        for position, entry in enumerate(entries):
            for field in fields:
                if not isinstance(entry, Mapping) or field not in entry:
                    instances = " These are instances, not panoptic." if "bbox" in entry else ""
                    raise ValueError(f"{path}: {name}[{position}] has no '{field}'.{instances}")
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            if "id" not in segment or "category_id" not in segment:
                raise ValueError(
                    f"{path}: a segment of image {annotation['image_id']} has no 'id' or no "
                    "'category_id'."
                )
    return content

"""Masks of single objects: COCO's polygons and run lengths to pixels, and back."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

# Fewer corners have no area.
_LEAST_COORDINATES = 6


class PackedSegmentations:
    """The `segmentation` of many annotations in one array, which forked workers can share.

    Args:
        annotations: COCO-format annotations.
        source: where they are from, for error messages.

    Raises:
        ValueError: an annotation has no segmentation.
    """

    def __init__(self, annotations: Sequence[Mapping], source: str):
        packed = []
        for annotation in annotations:
            segmentation = annotation.get("segmentation")
            if not segmentation:
                raise ValueError(
                    f"{source}: annotation {annotation.get('id')} of image "
                    f"{annotation['image_id']} has no segmentation; train without masks, or give "
                    "every object polygons or run lengths."
                )
            packed.append(json.dumps(segmentation).encode())
        self._offsets = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def masks(self, rows: Sequence[int], height: int, width: int) -> tv_tensors.Mask:
        """Masks of some annotations, uint8 (n, height, width).

        Raises:
            ValueError: run lengths of another size.
        """
        masks = np.zeros((len(rows), height, width), dtype=np.uint8)
        for mask, row in zip(masks, rows, strict=True):
            content = self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes()
            mask[:] = decode_segmentation(json.loads(content), height, width)
        return tv_tensors.Mask(torch.from_numpy(masks))


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation as pixels.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], whose union it is, or run lengths
            `{"size": [height, width], "counts": ...}`, compressed (a string) or not (a list).
        height: of the image.
        width: of the image.

    Returns:
        uint8 (height, width), 0 or 1.

    Raises:
        ValueError: run lengths of another size.
    """
    coco_mask = _coco_mask()
    if isinstance(segmentation, Mapping):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(
                f"a mask of size {list(segmentation['size'])} belongs to an image of "
                f"{[height, width]} (height, width)."
            )
        rle = dict(segmentation)
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, height, width)
        return coco_mask.decode(rle)
    polygons = [polygon for polygon in segmentation if len(polygon) >= _LEAST_COORDINATES]
    if not polygons:
        return np.zeros((height, width), dtype=np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Pixels (height, width), 0 or 1, as compressed run lengths that JSON can hold."""
    rle = _coco_mask().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def mask_area(segmentation: Mapping) -> float:
    """Number of pixels of compressed run lengths."""
    return float(_coco_mask().area(segmentation))


def _coco_mask():
    # Imported when it is needed: detection on images alone does without.
    from pycocotools import mask

    return mask


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks (n, H, W), none of them empty: float32 (n, 4) xyxy, ends exclusive."""
    masks = masks.as_subclass(Tensor).bool()
    ends = []
    for axis in (1, 2):
        occupied = masks.any(axis)
        first = occupied.byte().argmax(1)
        last = occupied.shape[1] - occupied.flip(1).byte().argmax(1)
        ends.append((first, last))
    (x0, x1), (y0, y1) = ends
    return torch.stack((x0, y0, x1, y1), 1).float()

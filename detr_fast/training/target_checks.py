"""Checks of targets: what no model can learn from becomes a sentence with image and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ops.target_packing import target_packing
from ..reference.target_packing import COORDINATE_SLACK
from .counted_warnings import zero_area_boxes
from .targets import PackedTargets, pack_targets


def validate_targets(
    targets: Sequence[Mapping[str, Tensor]] | PackedTargets,
    *,
    num_classes: int,
    num_images: int | None = None,
) -> PackedTargets:
    """Packs targets if they are not packed yet, and refuses those no model can learn from.

    Shapes are always checked. Values are checked for targets on the CPU only: on an accelerator a
    check would have to wait for the device at every step. Check before the targets move there, and
    before they are padded.

    Args:
        targets: one dictionary per image (see `pack_targets`), or packed targets.
        num_classes: number of classes without no-object; labels must be below it.
        num_images: number of images of the predictions these targets belong to, if known.

    Returns:
        The packed targets.

    Raises:
        TypeError: see `pack_targets`.
        ValueError: naming the image and the value: number of targets other than of images, boxes
            that are not normalised (cx, cy, w, h), a negative or non-finite size, a label outside
            [0, num_classes).

    Warns:
        UserWarning: once, if a target box has no area (its GIoU is defined, it can be learned).
    """
    sound = None
    if isinstance(targets, PackedTargets):
        packed = targets
    else:
        sound = _pack_dicts_if_sound(targets, num_classes)
        packed = pack_targets(targets) if sound is None else sound
    if num_images is not None and packed.num_images != num_images:
        raise ValueError(
            f"got targets for {packed.num_images} images but predictions for {num_images}: every "
            "image needs its dict, with empty 'labels' and 'boxes' where there is no object"
        )
    unseen = packed.counts is not None or packed.labels.device.type != "cpu"
    if sound is None and not unseen and len(packed.labels):
        _check_boxes(packed)
        _check_labels(packed, num_classes)
    return packed


def _pack_dicts_if_sound(
    targets: Sequence[Mapping[str, Tensor]], num_classes: int
) -> PackedTargets | None:
    try:
        labels = [target["labels"] for target in targets]
        boxes = [target["boxes"] for target in targets]
        image_ids = tuple([target.get("image_id") for target in targets])
    except (TypeError, KeyError, AttributeError, IndexError):
        return None  # whatever it is, the way with messages says it
    return pack_if_sound(labels, boxes, num_classes, image_ids)


def pack_if_sound(
    labels: Sequence[Tensor],
    boxes: Sequence[Tensor],
    num_classes: int,
    image_ids: tuple = (),
) -> PackedTargets | None:
    """The packed targets if one fast pass over them finds nothing to say, else None.

    Args:
        labels, boxes: for each image (n,) and (n, 4); may be anything, which then is not sound.
        num_classes: labels must be below it.
        image_ids: see `PackedTargets`.
    """
    try:
        if not labels or not (labels[0].is_cpu and boxes[0].is_cpu):
            return None
        *packed, sound = target_packing(labels, boxes, num_classes)
    except (TypeError, AttributeError, RuntimeError):
        return None
    if not sound:
        return None
    return PackedTargets(*packed, image_ids, known_sizes=tuple(map(len, labels)))


def _check_boxes(packed: PackedTargets) -> None:
    boxes = packed.boxes
    smallest = boxes[:, 2:].amin()
    if smallest < 0:
        row = int((boxes[:, 2:] < 0).any(1).nonzero()[0])
        image, position = _locate(packed, row)
        width, height = boxes[row, 2:].tolist()
        raise ValueError(
            f"box {position} of {packed.image_name(image)} has width {width:g} and height "
            f"{height:g}; expected normalised cxcywh with w, h >= 0: corners in the wrong order?"
        )
    low, high = torch.aminmax(boxes)
    # Written so that a NaN, for which every comparison is false, fails too.
    if not (low >= -COORDINATE_SLACK and high <= 1 + COORDINATE_SLACK):
        _refuse_boxes(packed)
    if smallest == 0:
        without_area = (boxes[:, 2:] == 0).any(1)
        image, position = _locate(packed, int(without_area.nonzero()[0]))
        zero_area_boxes.record(
            int(without_area.sum()),
            f"box {position} of {packed.image_name(image)} has no area; its GIoU is taken as "
            "defined for empty boxes. Further ones are accepted silently",
        )


def _refuse_boxes(packed: PackedTargets) -> None:
    boxes = packed.boxes
    finite = boxes.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        image, position = _locate(packed, row)
        raise ValueError(
            f"box {position} of {packed.image_name(image)} is not finite: {boxes[row].tolist()}"
        )
    outside = ((boxes < -COORDINATE_SLACK) | (boxes > 1 + COORDINATE_SLACK)).any(1)
    image, _ = _locate(packed, int(outside.nonzero()[0]))
    own = boxes[packed.offsets[image] : packed.offsets[image + 1]]
    extreme = own.amax() if own.amax() > 1 + COORDINATE_SLACK else own.amin()
    # Values of a few units are wrong, but hardly pixels.
    hint = ": pixel xyxy?" if extreme > 2 else ""
    raise ValueError(
        f"boxes of {packed.image_name(image)} reach {extreme.item():.1f}; "
        f"expected normalised cxcywh in [0, 1]{hint}"
    )


def _check_labels(packed: PackedTargets, num_classes: int) -> None:
    low, high = (bound.item() for bound in torch.aminmax(packed.labels))
    if low >= 0 and high < num_classes:
        return
    row = int(((packed.labels < 0) | (packed.labels >= num_classes)).nonzero()[0])
    image, position = _locate(packed, row)
    label = int(packed.labels[row])
    where = f"label {label} (target {position} of {packed.image_name(image)})"
    if label == num_classes:
        raise ValueError(
            f"{where} is the no-object slot of a model with {num_classes} classes: the target "
            "would be learned as background. Labels count from 0 to num_classes - 1"
        )
    if label < 0:
        raise ValueError(
            f"{where} is negative: it would wrap around to the no-object slot. Leave objects to "
            "ignore out of the targets"
        )
    raise ValueError(
        f"{where} is outside the model's {num_classes} classes: labels are indices of the label "
        "map, not category ids of the dataset"
    )


def _locate(packed: PackedTargets, row: int) -> tuple[int, int]:
    image = int(torch.searchsorted(packed.offsets, row, right=True)) - 1
    return image, row - int(packed.offsets[image])

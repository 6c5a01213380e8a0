"""Packed targets: the boxes and labels of a batch in one piece, and the checks they have to pass.

A batch arrives as one dictionary per image. Matching and losses want all targets in three tensors,
so that no operation loops over images. The number of targets of every image is a tensor shape,
known on the host, which is why nothing downstream ever has to copy from the device to ask for it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Rounding of normalised coordinates, half types included, stays below this; pixels stay far above.
_COORDINATE_SLACK = 1e-2


class CountedWarning:
    """A warning that is shown at its 1st, 10th, 100th... occurrence, with the count so far.

    Attributes:
        count: occurrences so far in this process.
    """

    def __init__(self, powers_of_ten: bool = True):
        self.count = 0
        self._repeats = powers_of_ten
        self._next = 1

    def record(self, occurrences: int, message: str) -> None:
        """Adds `occurrences`; warns with `message` when the count reached the next power of ten."""
        if occurrences <= 0:
            return
        first = self.count == 0
        self.count += occurrences
        if self.count < self._next or not (first or self._repeats):
            return
        while self._next <= self.count:
            self._next *= 10
        warnings.warn(f"{message} (so far: {self.count})", UserWarning, stacklevel=3)


#: Target boxes without area seen so far; shown once, since such boxes are legal in COCO.
zero_area_boxes = CountedWarning(powers_of_ten=False)
#: Images seen so far that have more targets than the model has queries.
overfull_images = CountedWarning()


@dataclass(frozen=True)
class PackedTargets:
    """The targets of B images as three tensors; T is the number of targets of all images.

    Attributes:
        labels: (T,) int64, index of the class in the label map.
        boxes: (T, 4) floating point, (cx, cy, w, h) as fractions of the image.
        offsets: (B+1,) int64, always on the CPU; image i owns targets `offsets[i]:offsets[i+1]`.
        image_ids: one entry per image, or empty: what names an image in messages.
    """

    labels: Tensor
    boxes: Tensor
    offsets: Tensor
    image_ids: tuple = field(default=(), repr=False)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of targets of each image."""
        return tuple(self.offsets.diff().tolist())

    @property
    def num_images(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def image_index(self) -> Tensor:
        """(T,) int64 on the device of the labels: the image each target belongs to."""
        index = torch.repeat_interleave(torch.arange(self.num_images), self.offsets.diff())
        return index.to(self.labels.device, non_blocking=True)

    def num_matched(self, num_queries: int) -> int:
        """Number of targets that find a query: min(num_queries, targets) of every image, summed."""
        return sum(min(size, num_queries) for size in self.sizes)

    def to(self, device: torch.device | str) -> PackedTargets:
        """The same targets on another device; the offsets stay on the CPU."""
        if self.labels.device == torch.device(device):
            return self
        return PackedTargets(
            self.labels.to(device, non_blocking=True),
            self.boxes.to(device, non_blocking=True),
            self.offsets,
            self.image_ids,
        )

    def repeated(self, times: int, num_queries: int) -> PackedTargets:
        """The same targets several times over, image by image.

        Args:
            times: how often each target is there, at least 1; less often in an image in which that
                would make more targets than queries.
            num_queries: number of queries of an image.
        """
        sizes = self.offsets.diff()
        fitting = (num_queries // sizes.clamp(min=1)).clamp(1, times)
        offsets = torch.cat((self.offsets[:1], (sizes * fitting).cumsum(0)))
        image = torch.repeat_interleave(torch.arange(self.num_images), offsets.diff())
        place = torch.arange(len(image)) - offsets[image]
        index = self.offsets[image] + place % sizes[image]
        index = index.to(self.labels.device, non_blocking=True)
        return PackedTargets(self.labels[index], self.boxes[index], offsets, self.image_ids)

    def image_name(self, image: int) -> str:
        """Names an image in a message, by its id where the target brought one."""
        identity = self.image_ids[image] if self.image_ids else None
        if identity is None:
            return f"image {image} of the batch"
        return f"image {int(identity)}"


def pack_targets(targets: Sequence[Mapping[str, Tensor]]) -> PackedTargets:
    """Packs one target dictionary per image; checks keys and shapes, never values.

    Args:
        targets: for each image a mapping with `labels` (n,) of any integer type and `boxes` (n, 4).
            An image without objects may bring empty tensors of any type and of shape (0,). An
            `image_id` is used in messages. All tensors of a batch are on one device.

    Returns:
        The packed targets on the device of the tensors. Boxes keep their floating-point type
        (integers become float32).

    Raises:
        TypeError: if `targets` is not a sequence of mappings, or labels are not integers.
        ValueError: if a key is missing or the shapes of an image do not agree.
    """
    if isinstance(targets, (Mapping, Tensor)) or not isinstance(targets, Sequence):
        raise TypeError(
            "targets must be a list with one dict per image, each with 'labels' (n,) and 'boxes' "
            f"(n, 4); got {type(targets).__name__}"
        )
    labels, boxes, image_ids = [], [], []
    for position, target in enumerate(targets):
        if not isinstance(target, Mapping):
            raise TypeError(
                f"targets[{position}] must be a dict with 'labels' and 'boxes'; "
                f"got {type(target).__name__}"
            )
        image_ids.append(target.get("image_id"))
        _check_shapes(target, position)
        labels.append(target["labels"].to(torch.int64))
        own = target["boxes"].reshape(-1, 4)
        boxes.append(own if own.is_floating_point() else own.float())
    offsets = torch.tensor([0, *(len(own) for own in labels)]).cumsum(0)
    if not targets:
        return PackedTargets(torch.empty(0, dtype=torch.int64), torch.empty(0, 4), offsets)
    return PackedTargets(torch.cat(labels), torch.cat(boxes), offsets, tuple(image_ids))


def validate_targets(
    targets: Sequence[Mapping[str, Tensor]] | PackedTargets,
    *,
    num_classes: int,
    num_images: int | None = None,
) -> PackedTargets:
    """Packs targets if they are not packed yet, and refuses those no model can learn from.

    Shapes are always checked. Values are checked for targets on the CPU only: on an accelerator a
    check would have to wait for the device at every step. Check before the targets move there.

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
    packed = targets if isinstance(targets, PackedTargets) else pack_targets(targets)
    if num_images is not None and packed.num_images != num_images:
        raise ValueError(
            f"got targets for {packed.num_images} images but predictions for {num_images}: every "
            "image needs its dict, with empty 'labels' and 'boxes' where there is no object"
        )
    if len(packed.labels) and packed.labels.device.type == "cpu":
        _check_boxes(packed)
        _check_labels(packed, num_classes)
    return packed


def _check_shapes(target: Mapping[str, Tensor], position: int) -> None:
    for key in ("labels", "boxes"):
        if key not in target:
            raise ValueError(f"{_name(target, position)} has no '{key}'; it has {sorted(target)}")
        if not isinstance(target[key], Tensor):
            raise TypeError(
                f"'{key}' of {_name(target, position)} must be a tensor; "
                f"got {type(target[key]).__name__}"
            )
    labels, boxes = target["labels"], target["boxes"]
    if labels.dim() != 1:
        raise ValueError(
            f"labels of {_name(target, position)} must have shape (n,); got {tuple(labels.shape)}"
        )
    if len(labels) and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(f"labels of {_name(target, position)} must be integers; got {labels.dtype}")
    empty = boxes.numel() == 0 and boxes.dim() in (1, 2)
    if not empty and (boxes.dim() != 2 or boxes.shape[1] != 4):
        raise ValueError(
            f"boxes of {_name(target, position)} must have shape (n, 4); got {tuple(boxes.shape)}"
        )
    if len(labels) != boxes.numel() // 4:
        raise ValueError(
            f"{_name(target, position)} has {len(labels)} labels but {boxes.numel() // 4} boxes: "
            "each box needs its label"
        )


def _name(target: Mapping[str, Tensor], position: int) -> str:
    # Only for messages: reading an id from an accelerator waits for it.
    identity = target.get("image_id")
    return f"targets[{position}]" + (f" (image {int(identity)})" if identity is not None else "")


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
    if not (low >= -_COORDINATE_SLACK and high <= 1 + _COORDINATE_SLACK):
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
    outside = ((boxes < -_COORDINATE_SLACK) | (boxes > 1 + _COORDINATE_SLACK)).any(1)
    image, _ = _locate(packed, int(outside.nonzero()[0]))
    own = boxes[packed.offsets[image] : packed.offsets[image + 1]]
    extreme = own.amax() if own.amax() > 1 + _COORDINATE_SLACK else own.amin()
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

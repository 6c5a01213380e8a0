"""The targets of a batch in one piece, checked in the same pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import target_packing as reference
from ._library import define


def target_packing(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Concatenates the labels and boxes of all images, and checks them in the same pass.

    This is for the usual case, at every step of a training, where there is nothing to say about the
    targets. It does not say what is wrong with others: who wants a sentence looks for it then.

    Args:
        labels: for each image (n,) int64 on the CPU.
        boxes: for each image (n, 4) float32 or float64 on the CPU, all of one dtype: `cx, cy, w, h`
            as fractions of the image.
        num_classes: labels must be below it.

    Returns:
        labels (T,), boxes (T, 4), offsets (B + 1,) and sound, a bool of no dimensions. If it is
        False, the other results mean nothing: there is no image, a dtype or shape is not as above,
        a label is outside [0, num_classes), a coordinate is not finite or outside [0, 1] by more
        than rounding, or a box has no area.
    """
    return _operation(labels, boxes, num_classes)


def _fake(labels: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int):
    if not reference.regular(labels, boxes):
        return (
            torch.empty(0, dtype=torch.int64),
            torch.empty(0, 4),
            torch.empty(1, dtype=torch.int64),
            torch.empty((), dtype=torch.bool),
        )
    targets = sum(own.shape[0] for own in labels)
    return (
        labels[0].new_empty(targets),
        boxes[0].new_empty(targets, 4),
        labels[0].new_empty(len(labels) + 1),
        labels[0].new_empty((), dtype=torch.bool),
    )


_operation = define(
    "target_packing(Tensor[] labels, Tensor[] boxes, int num_classes)"
    " -> (Tensor labels, Tensor boxes, Tensor offsets, Tensor sound)",
    reference.target_packing,
    _fake,
)

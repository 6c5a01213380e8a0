"""The targets of a batch in one piece, with one answer to whether all of them can be learned."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Rounding of normalised coordinates, half types included, stays below this; pixels far above.
COORDINATE_SLACK = 1e-2


def target_packing(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Concatenates labels and boxes, and checks them.

    Args:
        labels: for each image (n,) int64.
        boxes: for each image (n, 4), `cx, cy, w, h` as fractions of the image.
        num_classes: labels must be below it.

    Returns:
        labels (T,), boxes (T, 4), offsets (B + 1,) and sound (): False if anything about the
        targets is unusual, and then nothing else is said.
    """
    if not regular(labels, boxes):
        nothing = torch.empty(0, dtype=torch.int64)
        return nothing, torch.empty(0, 4), torch.zeros(1, dtype=torch.int64), torch.tensor(False)
    offsets = torch.tensor([0, *(len(own) for own in labels)]).cumsum(0)
    all_labels, all_boxes = torch.cat(list(labels)), torch.cat(list(boxes))
    inside = (all_boxes >= -COORDINATE_SLACK) & (all_boxes <= 1 + COORDINATE_SLACK)
    sound = (
        inside.all()
        & (all_boxes[:, 2:] > 0).all()
        & (all_labels >= 0).all()
        & (all_labels < num_classes).all()
    )
    return all_labels, all_boxes, offsets, sound


def regular(labels: Sequence[Tensor], boxes: Sequence[Tensor]) -> bool:
    """Whether the dtypes and shapes are those of `target_packing`."""
    if not labels or len(labels) != len(boxes):
        return False
    dtype = boxes[0].dtype
    return dtype in (torch.float32, torch.float64) and all(
        label.dtype == torch.int64
        and label.dim() == 1
        and box.dtype == dtype
        and box.shape == (len(label), 4)
        for label, box in zip(labels, boxes, strict=True)
    )

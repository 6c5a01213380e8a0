"""Zeros beyond each image's own extent on a padded feature map."""

import torch
from torch import Tensor


def outside(extents: Tensor, height: int, width: int) -> Tensor:
    """Where a padded grid lies outside of its images.

    Args:
        extents: (B, 2) integers, rows and columns of each image from the top left corner.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        (B, height, width) bool, True outside.
    """
    rows = torch.arange(height, device=extents.device)[:, None] >= extents[:, 0, None, None]
    columns = torch.arange(width, device=extents.device) >= extents[:, 1, None, None]
    return rows | columns


def zero_outside(features: Tensor, extents: Tensor) -> Tensor:
    """A copy of `features` (B, C, H, W) with zeros where `outside(extents, H, W)`.

    Selected, not multiplied: what stands outside may be infinite or NaN.
    """
    copy = features.clone()  # in its memory format
    zero_outside_(copy, extents)
    return copy


def zero_outside_(features: Tensor, extents: Tensor) -> None:
    """The same in place."""
    features.masked_fill_(outside(extents, *features.shape[2:])[:, None], 0.0)

"""Where the images of a padded batch end, in pixels and on a grid of features.

A mask is True on padding. Extents are (B, 2) int64: rows and columns of each image, which stands
in the top left corner of the canvas.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.zero_outside import outside


def image_extents(mask: Tensor) -> Tensor:
    """The extents of the images that a mask (B, H, W) leaves free; nothing waits for the device."""
    free = ~mask
    return torch.stack((free[:, :, 0].sum(1), free[:, 0, :].sum(1)), dim=1)


def strided(extents: Tensor, stride: int) -> Tensor:
    """Extents after a convolution or pooling that keeps every `stride`-th position: ceil(n / s)."""
    return (extents + (stride - 1)) // stride


def grid_mask(extents: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask (B, *size) of extents on a grid: an image has there what it has alone."""
    return outside(extents, *size)


def feature_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Padding of a feature map, (B, H, W) -> (B, *size) bool, by nearest interpolation.

    This is the original's rule, which its published AP rests on: the map has ceil(h * Hf / H)
    valid rows where the image alone would have ceil(h / stride), so that a batch does not
    reproduce its images one by one exactly.
    """
    return F.interpolate(mask[None].float(), size=size).to(torch.bool)[0]

"""Where the images of a padded batch end, in pixels and on a grid of features.

Extents are (B, 2) int64: rows and columns of each image, which stands in the top left corner of the
canvas. Nothing here waits for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def image_extents(mask: Tensor) -> Tensor:
    """The extents of the images that the mask of a `NestedTensor` (B, H, W) leaves free."""
    free = ~mask
    return torch.stack((free[:, :, 0].sum(1), free[:, 0, :].sum(1)), dim=1)


def strided(extents: Tensor, stride: int) -> Tensor:
    """Extents after a convolution or pooling that keeps every `stride`-th position: ceil(n / s)."""
    return (extents + (stride - 1)) // stride


def stride_of(module: nn.Module) -> int:
    """The stride of a convolution or pooling, for `strided`; 1 of a module that has none.

    Raises:
        ValueError: one stride goes down and another to the right.
    """
    down, right = pair(getattr(module, "stride", 1))
    if down != right:
        raise ValueError(f"{module} must have the same stride down and to the right")
    return down


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """What an option of a convolution or pooling is, down and to the right."""
    return (size, size) if isinstance(size, int) else tuple(size)


def nearest(extents: Tensor, canvas: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Extents on the grid (Hf, Wf) of a canvas (H, W), as nearest interpolation of its mask has it.

    This is the original's rule, which its published AP rests on: an image has about h * Hf / H rows
    where alone it would have ceil(h / stride), so that a batch does not reproduce its images one by
    one exactly.
    """
    counts = []
    for extent, size, cells in zip(extents.unbind(1), canvas, grid, strict=True):
        pixels = torch.arange(size, dtype=torch.float32, device=extents.device)
        # The interpolation itself says which pixel a cell shows, in its own rounding.
        shown = F.interpolate(pixels[None, None], size=cells)[0]
        counts.append((shown < extent[:, None]).sum(1))
    return torch.stack(counts, dim=1)

"""How a ResNet begins: 7x7 convolution of stride 2, ReLU, 3x3 maximum of stride 2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packed import in_word, packed, unpacked
from .zero_outside import zero_outside_

KERNEL, CHANNELS = (7, 7), 3
# Numbers of a row of the kernel.
_IN_ROW = KERNEL[1] * CHANNELS


def words(dtype: torch.dtype) -> int:
    """Words of 32 bits that the weights of one output fill, each row of the kernel whole ones."""
    return KERNEL[0] * -(-_IN_ROW // in_word(dtype))


def resnet_stem_weight(weight: Tensor) -> Tensor:
    """Lays weights out as they are multiplied.

    Args:
        weight: (O, 3, 7, 7).

    Returns:
        (O / 64, words, 64, w), w being `in_word`: rows of the kernel by their pixels by their
        channels, each row filled up with zeros to whole words.
    """
    rows = weight.permute(0, 2, 3, 1).flatten(2)
    return packed(F.pad(rows, (0, -_IN_ROW % in_word(weight.dtype))).flatten(1))


def resnet_stem(x: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None) -> Tensor:
    """Arguments and result as in `ops.resnet_stem`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = unpacked(weight).unflatten(1, (KERNEL[0], -1))
    kernel = rows[..., :_IN_ROW].unflatten(2, (KERNEL[1], CHANNELS))
    convolved = F.conv2d(
        x.to(wide), kernel.permute(0, 3, 1, 2).to(wide), bias.to(wide), 2, 3
    ).relu()
    if extents is not None:
        zero_outside_(convolved, -(-extents // 2))
    pooled = F.max_pool2d(convolved, 3, 2, 1).to(x.dtype)
    return pooled.contiguous(memory_format=torch.channels_last)

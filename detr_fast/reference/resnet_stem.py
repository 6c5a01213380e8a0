"""How a ResNet begins: 7x7 convolution of stride 2, ReLU, 3x3 maximum of stride 2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packed import in_word, packed, unpacked
from .zero_outside import zero_outside_

KERNEL, CHANNELS = (7, 7), 3
# What `conv2d` takes after the bias: stride, padding and dilation, down and to the right.
CONVOLUTION = ((2, 2), (3, 3), (1, 1))
# What `max_pool2d` takes after its input: kernel, stride, padding and dilation, down and to the
# right, `ceil_mode` and `return_indices`.
MAXIMUM = ((3, 3), (2, 2), (1, 1), (1, 1), False, False)
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
    kernel = rows[..., :_IN_ROW].unflatten(2, (KERNEL[1], CHANNELS)).permute(0, 3, 1, 2)
    convolved = F.conv2d(x.to(wide), kernel.to(wide), bias.to(wide), *CONVOLUTION).relu()
    if extents is not None:
        zero_outside_(convolved, -(-extents // 2))
    pooled = F.max_pool2d(convolved, *MAXIMUM).to(x.dtype)
    return pooled.contiguous(memory_format=torch.channels_last)

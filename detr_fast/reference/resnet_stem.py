"""How a ResNet begins: 7x7 convolution of stride 2, ReLU, 3x3 maximum of stride 2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .winograd import OUTPUT_STEP, in_word
from .zero_outside import zero_outside_

KERNEL, CHANNELS = 7, 3


def words(dtype: torch.dtype) -> int:
    """Words of 32 bits that the weights of one output fill, each row of the kernel whole ones."""
    return KERNEL * -(-KERNEL * CHANNELS // in_word(dtype))


def resnet_stem_weight(weight: Tensor) -> Tensor:
    """Lays weights out as they are multiplied.

    Args:
        weight: (O, 3, 7, 7).

    Returns:
        (O / 64, words, 64, w), w being `in_word`: rows of the kernel by their pixels by their
        channels, each row filled up with zeros to whole words.
    """
    word = in_word(weight.dtype)
    rows = weight.permute(0, 2, 3, 1).flatten(2)
    filled = F.pad(rows, (0, -KERNEL * CHANNELS % word)).flatten(1)
    grouped = filled.reshape(-1, OUTPUT_STEP, filled.shape[1] // word, word)
    return grouped.transpose(1, 2).contiguous()


def resnet_stem(images: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None) -> Tensor:
    """Arguments and result as in `ops.resnet_stem`."""
    wide = torch.promote_types(images.dtype, torch.float32)
    outputs = weight.transpose(1, 2).reshape(bias.shape[0], KERNEL, -1)
    kernel = outputs[..., : KERNEL * CHANNELS].unflatten(2, (KERNEL, CHANNELS))
    convolved = F.conv2d(
        images.to(wide), kernel.permute(0, 3, 1, 2).to(wide), bias.to(wide), 2, KERNEL // 2
    ).relu()
    if extents is not None:
        zero_outside_(convolved, -(-extents // 2))
    pooled = F.max_pool2d(convolved, 3, 2, 1).to(images.dtype)
    return pooled.contiguous(memory_format=torch.channels_last)

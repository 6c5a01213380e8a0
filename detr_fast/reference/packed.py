"""Weights in the order that the compiled kernels multiply them in, and what follows a product."""

import torch
from torch import Tensor

# Outputs whose weights lie side by side.
OUTPUT_STEP = 64


def in_word(dtype: torch.dtype) -> int:
    """How many numbers fill a word of 32 bits; 1 where one is longer."""
    return max(1, 4 // dtype.itemsize)


def packed(weight: Tensor) -> Tensor:
    """Lays weights (..., O, I) out as (O / 64, ..., I / w, 64, w), w being `in_word`."""
    outputs, inputs = weight.shape[-2:]
    word = in_word(weight.dtype)
    shape = (outputs // OUTPUT_STEP, OUTPUT_STEP, inputs // word, word)
    grouped = weight.reshape(*weight.shape[:-2], *shape)
    return grouped.movedim(-3, -2).movedim(-4, 0).contiguous()


def unpacked(weight: Tensor) -> Tensor:
    """The weights (..., O, I) that `packed` laid out."""
    strips, (words, outputs, word) = weight.shape[0], weight.shape[-3:]
    grouped = weight.movedim(0, -4).movedim(-3, -2)
    return grouped.reshape(*weight.shape[1:-3], strips * outputs, words * word)


def finished(total: Tensor, dtype: torch.dtype, relu: bool) -> Tensor:
    """The result of a convolution, with or without ReLU, rounded once."""
    total = total.relu() if relu else total
    return total.to(dtype).contiguous(memory_format=torch.channels_last)

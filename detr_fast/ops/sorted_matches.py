"""The matches of every image as SciPy lists them: queries ascending, each with its target."""

import torch
from torch import Tensor

from ..reference import sorted_matches as reference
from ._library import define


def sorted_matches(matched: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sorts the matches of each image by query, without waiting for the device.

    Args:
        matched: (G, T) int64 on any device, as from `set_matching` for one set of predictions: the
            query of every target in each of G groups of queries, counted within the image, -1 for
            none. No query of an image occurs twice.
        offsets: (B + 1,) int64 on the CPU: image b has the targets `offsets[b]:offsets[b + 1]`.

    Returns:
        queries (G * T,) and targets (G * T,), int64 on the device of `matched`. From
        `G * offsets[b]` on they have the matches of image b: queries ascending, targets counted
        within the image; behind these come pairs of -1, one for every -1 of the image.

    Raises:
        TypeError: `matched` or `offsets` is not int64.
        ValueError: a shape does not agree, or `offsets` do not divide the targets.
    """
    if matched.dtype != torch.int64 or offsets.dtype != torch.int64:
        raise TypeError(
            f"matched has dtype {matched.dtype} and offsets {offsets.dtype}: use int64 for both."
        )
    if matched.dim() != 2 or offsets.dim() != 1 or len(offsets) == 0:
        raise ValueError(
            f"matched has shape {tuple(matched.shape)} and offsets {tuple(offsets.shape)}: use "
            "(G, T), a row for each group of queries, and (B + 1,)."
        )
    return _operation(matched, offsets)


def _fake(matched: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return matched.new_empty(matched.numel()), matched.new_empty(matched.numel())


_operation = define(
    "sorted_matches(Tensor matched, Tensor offsets) -> (Tensor queries, Tensor targets)",
    reference.sorted_matches,
    _fake,
)

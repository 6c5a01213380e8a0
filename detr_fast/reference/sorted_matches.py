"""The matches of every image as SciPy lists them: queries ascending, each with its target."""

import torch
from torch import Tensor


def sorted_matches(matched: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sorts the matches of each image by query.

    Args:
        matched: (G, T) int64, the query of every target in each of G groups, -1 for none.
        offsets: (B + 1,) int64 on the CPU; image b has the targets `offsets[b]:offsets[b + 1]`.

    Returns:
        queries (G * T,) and targets (G * T,) int64: from G * offsets[b] on the matches of image b,
        queries ascending, targets counted within the image; behind them -1 where targets have none.

    Raises:
        ValueError: `offsets` do not ascend from 0 to T.
    """
    groups, targets = matched.shape
    sizes = offsets.diff()
    if offsets[0] != 0 or offsets[-1] != targets or (sizes < 0).any():
        raise ValueError(
            f"offsets are {offsets.tolist()}, but must ascend from 0 to the number of targets, "
            f"{targets}."
        )
    image = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    place = torch.arange(len(image)) - offsets[image]
    # Without waiting for a device.
    image, place = (each.to(matched.device, non_blocking=True) for each in (image, place))
    image, place = image.repeat(groups), place.repeat(groups)
    queries = matched.flatten()
    # By query with those that are matched first, then by image, keeping the order within it.
    last = torch.iinfo(torch.int64).max
    order = torch.where(queries < 0, last, queries).argsort(stable=True)
    order = order[image[order].argsort(stable=True)]
    return queries[order], torch.where(queries < 0, -1, place)[order]

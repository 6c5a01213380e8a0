"""Images of like shapes in one batch, so that little of it is padding."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch.utils.data import Sampler

from .sampling import EpochSampler


def size_buckets(
    sizes: Sequence[tuple[int, int]], batch_size: int, shares: int = 1
) -> list[list[int]]:
    """Divides images into batches of like aspect ratios.

    A resize to one short side leaves an image nothing but its aspect ratio, so that neighbours in
    that order differ little in both sides. Of images that keep their own sizes, which differ in
    scale too, more of a batch stays padding.

    Args:
        sizes: (height, width) of each image, before or after such a resize.
        batch_size: largest number of images in a batch.
        shares: how many take every `shares`-th batch each.

    Returns:
        The positions in `sizes`, each once, as batches whose lengths differ by at most one. The
        shares get equally many batches, unless there are fewer images, and their numbers of images
        differ by at most one. The same sizes give the same batches.

    Raises:
        ValueError: `batch_size` or `shares` is below 1.
    """
    if batch_size < 1 or shares < 1:
        raise ValueError(f"batch_size is {batch_size}, shares {shares}; expected at least 1.")
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i][0] / sizes[i][1], sizes[i]))
    rounds = -(-len(order) // (batch_size * shares))
    least, larger = divmod(len(order), max(rounds * shares, 1))
    starts = [batch * least + min(batch, larger) for batch in range(rounds * shares + 1)]
    return [order[start:end] for start, end in pairwise(starts) if start < end]


class BucketSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of `(index, seed)` for evaluation; see `size_buckets`.

    Every image occurs exactly once over all processes, with the seed that an unshuffled
    `EpochSampler` gives it; every epoch is the same. The order of images is not that of the data
    set: results that depend on the batch an image comes in are other ones than without buckets.

    Args:
        sizes: (height, width) of every image of the data set.
        batch_size: largest number of images in a batch.
        seed: of the transform's random numbers, if it draws any.
        rank: of this process; it takes every `world_size`-th batch.
        world_size: number of processes.

    Raises:
        ValueError: `rank` is not in [0, world_size), or `batch_size` below 1.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected 0 to {world_size - 1}.")
        self.batch_size = batch_size
        samples = list(EpochSampler(len(sizes), shuffle=False, seed=seed))
        buckets = size_buckets(sizes, batch_size, world_size)[rank::world_size]
        self._batches = [[samples[i] for i in bucket] for bucket in buckets]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches)

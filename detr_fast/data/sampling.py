"""Which images a process sees in which order, and the random numbers that each of them gets."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields `(index, seed)`, a function of `(seed, epoch)` alone.

    The permutation and the seed of each image's augmentation depend neither on the number of
    processes nor on that of workers, so that a resumed run sees what an uninterrupted one sees,
    and two processes together see what one sees.

    Args:
        length: number of images in the data set.
        shuffle: permute them anew in every epoch.
        seed: of the permutations and of the augmentation.
        rank: of this process; it takes every `world_size`-th image.
        world_size: number of processes.
        pad: repeat the first images so that all ranks get equally many, as training with
            gradient exchange needs; otherwise every image occurs exactly once over all ranks.

    Raises:
        ValueError: `rank` is not in [0, world_size).
    """

    def __init__(
        self,
        length: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected 0 to {world_size - 1}.")
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.rank = rank
        self.world_size = world_size
        self._total = -(-length // world_size) * world_size if pad else length

    def set_epoch(self, epoch: int) -> None:
        """To be called before iterating an epoch, or every epoch is the first."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self._total, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(self.length)
        if self.shuffle:
            generator.shuffle(order)
        seeds = generator.integers(2**31, size=self.length)
        for position in range(self.rank, self._total, self.world_size):
            index = int(order[position % self.length])
            yield index, int(seeds[index])


class SeededSamples(Dataset):
    """A data set indexed by `(index, seed)`: the transform's random numbers follow from the seed.

    Torch's CPU generator is left as it was, so that loading in the main process does not move the
    random numbers of the model.

    Args:
        dataset: a detection data set; its `label_map` and `ground_truth()` are passed on.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    @property
    def label_map(self):
        return self.dataset.label_map

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of the data set as a COCO-format dict."""
        return self.dataset.ground_truth()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: tuple[int, int]):
        index, seed = sample
        # Not torch.manual_seed: that would seed the GPUs too, and with them the model's dropout.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            return self.dataset[index]
        finally:
            generator.set_state(state)

"""Which images each step of an epoch takes."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from ..data.sampling import EpochSampler


class StepSampler(Sampler[tuple[int, int]]):
    """A process's share of a shuffled epoch that can be entered in its middle.

    The order, and the seed of each image's augmentation, are those of `data.sampling.EpochSampler`
    and depend on seed and epoch alone. A step of several processes takes the same images, dealt out
    in turn, as that of one process with a batch as large as theirs together. Images that do not
    fill a last step are left out; in the next epoch it is others.

    Args:
        length: Number of images of the data set.
        step_images: Images of one process in one optimizer step.
        seed: Seed of the orders.
        process: Number of this process.
        processes: Number of processes.

    Raises:
        ValueError: The data set does not fill one step.
    """

    def __init__(
        self, length: int, step_images: int, seed: int = 0, process: int = 0, processes: int = 1
    ) -> None:
        if length < step_images * processes:
            raise ValueError(
                f"the training set has {length} images but a step takes {step_images * processes} "
                f"({step_images} in each of {processes} processes); lower batch_size or accumulate"
            )
        self._order = EpochSampler(length, shuffle=True, seed=seed)
        self._step_images = step_images
        self._process = process
        self._processes = processes
        self._seen = 0

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step over all processes."""
        return self._step_images * self._processes

    @property
    def steps_per_epoch(self) -> int:
        return self.steps_left(0)

    def steps_left(self, seen: int) -> int:
        """Steps still to take in an epoch of which `seen` images are behind."""
        return (len(self._order) - seen) // self.images_per_step

    def set_epoch(self, epoch: int, seen: int = 0) -> None:
        """Chooses what to iterate next.

        Args:
            epoch: Index of the epoch.
            seen: How many of its images, over all processes, are behind already.
        """
        self._order.set_epoch(epoch)
        self._seen = seen

    def __len__(self) -> int:
        return self.steps_left(self._seen) * self._step_images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        mine = list(self._order)[self._seen :][self._process :: self._processes]
        return iter(mine[: len(self)])

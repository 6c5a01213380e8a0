"""Warnings that come back at every step of a training: shown rarely, counted always."""

from __future__ import annotations

import warnings


class CountedWarning:
    """A warning that is shown at its 1st, 10th, 100th... occurrence, with the count so far.

    Attributes:
        count: occurrences so far in this process.
    """

    def __init__(self, powers_of_ten: bool = True):
        self.count = 0
        self._repeats = powers_of_ten
        self._next = 1

    def record(self, occurrences: int, message: str) -> None:
        """Adds `occurrences`; warns with `message` when the count reached the next power of ten."""
        if occurrences <= 0:
            return
        first = self.count == 0
        self.count += occurrences
        if self.count < self._next or not (first or self._repeats):
            return
        while self._next <= self.count:
            self._next *= 10
        warnings.warn(f"{message} (so far: {self.count})", UserWarning, stacklevel=3)


#: Target boxes without area seen so far; shown once, since such boxes are legal in COCO.
zero_area_boxes = CountedWarning(powers_of_ten=False)
#: Images seen so far that have more targets than the model has queries.
overfull_images = CountedWarning()

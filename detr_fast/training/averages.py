"""Averages over the steps of an epoch, under the names that DETR's logs use."""

import math
from collections.abc import Mapping


class EpochAverages:
    """Running means of the figures of every step.

    The class error of a batch without objects is not a number, and is left out of its mean.
    """

    def __init__(self) -> None:
        self._totals: dict[str, list[float]] = {}  # sum and count

    def add(
        self, losses: Mapping[str, float], loss: float, lr: float, weights: Mapping[str, float]
    ) -> None:
        """Adds a step.

        Args:
            losses: Unweighted losses and errors, by the criterion's names.
            loss: Their weighted sum.
            lr: Learning rate of the first parameter group.
            weights: Weights of the losses that have one.
        """
        figures = {"lr": lr}
        if "class_error" in losses:
            figures["class_error"] = losses["class_error"]
        figures["loss"] = loss
        figures |= {name: losses[name] * weights[name] for name in losses if name in weights}
        figures |= {f"{name}_unscaled": value for name, value in losses.items()}
        for name, value in figures.items():
            total = self._totals.setdefault(name, [0.0, 0])
            if not math.isnan(value):
                total[0] += value
                total[1] += 1

    def means(self) -> dict[str, float]:
        """Mean of every figure, NaN where no step had one."""
        return {
            name: total / count if count else math.nan
            for name, (total, count) in self._totals.items()
        }

    def clear(self) -> None:
        """Begins a new epoch."""
        self._totals.clear()

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(total) for name, total in self._totals.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self._totals = {name: list(total) for name, total in state.items()}

"""Steps that are not finite: what was not, and whether training goes on after one."""

import math

from .step import StepResult

# A model whose every step is skipped does not recover.
_MAX_SKIPPED_IN_A_ROW = 20
# Predictions that a message names.
_NAMED = 3


class NonFiniteError(ValueError):
    """Training stopped because predictions, losses or gradients were NaN or infinite."""


class NonFiniteSteps:
    """Applies a recipe's policy for steps that are not finite.

    Args:
        policy: One of `recipe.NONFINITE_POLICIES`: "stop" at the first, or "skip" them, as long as
            not too many come in a row.
    """

    def __init__(self, policy: str) -> None:
        self._stop = policy == "stop"
        self._in_a_row = 0

    def ends_training(self, result: StepResult) -> bool:
        """Counts the next step, and says whether it is the last one for not being finite."""
        self._in_a_row = 0 if result.finite else self._in_a_row + 1
        return self._in_a_row > (0 if self._stop else _MAX_SKIPPED_IN_A_ROW)


def what_was_nonfinite(result: StepResult) -> str:
    """Names what was not finite in a step: predictions by layer and image, or loss, or gradient."""
    if not result.faults:
        what = "the gradient" if math.isfinite(result.loss) else "the loss"
        return f"{what} is not finite (loss {result.loss})"
    shown = "; ".join(result.faults[:_NAMED])
    more = f" and {len(result.faults) - _NAMED} more" if len(result.faults) > _NAMED else ""
    return f"predictions are not finite: {shown}{more}"

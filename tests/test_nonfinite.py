"""Steps that are not finite: when training ends, and what is said of them."""

import pytest

from detr_fast.training.nonfinite import NonFiniteSteps, what_was_nonfinite
from detr_fast.training.step import StepResult


def step(finite=False, loss=float("nan"), faults=()):
    return StepResult({}, loss, finite, stop=False, faults=list(faults))


def test_the_first_one_stops():
    steps = NonFiniteSteps("stop")
    assert not steps.ends_training(step(finite=True))
    assert steps.ends_training(step())


def test_twenty_in_a_row_are_skipped():
    steps = NonFiniteSteps("skip")
    for _ in range(2):
        assert not any(steps.ends_training(step()) for _ in range(20))
        assert not steps.ends_training(step(finite=True))
    assert [steps.ends_training(step()) for _ in range(21)] == 20 * [False] + [True]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (step(loss=1.5), "the gradient is not finite (loss 1.5)"),
        (step(), "the loss is not finite (loss nan)"),
        (step(faults="abc"), "predictions are not finite: a; b; c"),
        (step(faults="abcde"), "predictions are not finite: a; b; c and 2 more"),
    ],
)
def test_what_is_said(result, text):
    assert what_was_nonfinite(result) == text

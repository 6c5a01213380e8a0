"""Seconds: of a call, of its stages, and the spread of many."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

T = TypeVar("T")


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What a call returns, and the seconds until that is there."""
    synchronise(device)
    start = time.perf_counter()
    result = call()
    synchronise(device)
    return result, time.perf_counter() - start


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and mean of some times, and how many there are ("samples")."""
    q1, median, q3 = (float(q) for q in np.percentile(seconds, (25, 50, 75)))
    mean = float(np.mean(seconds))
    return {"median": median, "q1": q1, "q3": q3, "mean": mean, "samples": len(seconds)}


def stage_times(
    call: Callable[[], object],
    ends: Mapping[str, nn.Module],
    last: str,
    device: torch.device,
) -> dict[str, float]:
    """The seconds of the stages of a call, which follow one another without a gap.

    On a GPU they are taken between events on its current stream, so that nothing waits in between.

    Args:
        call: runs each module of `ends` once.
        ends: the module with which each stage ends, in order.
        last: name of what comes after the last of them.
        device: where it runs.

    Returns:
        The seconds of each stage, in order.

    Raises:
        RuntimeError: `call` does not run those modules in that order.
    """
    marks: list[tuple[str, object]] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: marks.append((name, _mark(device))))
        for name, module in ends.items()
    ]
    try:
        synchronise(device)
        start = _mark(device)
        call()
        marks.append((last, _mark(device)))
        synchronise(device)
    finally:
        for handle in handles:
            handle.remove()
    if [name for name, _ in marks] != [*ends, last]:
        ran = ", ".join(name for name, _ in marks)
        raise RuntimeError(f"the stages ended in the order {ran}; expected {', '.join(ends)} once")
    befores = [start, *(mark for _, mark in marks)]
    return {
        name: _between(before, mark) for (name, mark), before in zip(marks, befores, strict=False)
    }


def _mark(device: torch.device):
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start, stop) -> float:
    return stop - start if isinstance(start, float) else 1e-3 * start.elapsed_time(stop)

"""How long a call takes on a device, and how much memory it needs there."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 9
# A round is long against the resolution of an event, and short against the time of a part.
ROUND_SECONDS = 0.02
MOST_CALLS = 200


def captured(run: Callable[[], object], device: str) -> Callable[[], object]:
    """A call that replays `run` from a CUDA graph; on a CPU, which has none, `run` itself."""
    if device == "cpu":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Seconds of one call: the median of several rounds of calls, after a warm-up.

    On a GPU between two events around a round, so that what the host does meanwhile counts only
    where the device waits for it. On a CPU, where only the benchmark itself is tried, of one call.
    """
    if device == "cpu":
        return _round(run, 1, device)
    for _ in range(3):
        once = _round(run, 1, device)
    calls = max(1, min(MOST_CALLS, int(ROUND_SECONDS / max(once, 1e-9))))
    return statistics.median(_round(run, calls, device) for _ in range(ROUNDS))


def _round(run: Callable[[], object], calls: int, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000 / calls


def peak_mib(run: Callable[[], object], device: str) -> float | None:
    """MiB of device memory allocated at the most during a call; None on a CPU."""
    if device == "cpu":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20

"""How a CUDA graph is captured: in which order, on which stream, and what is left if it fails.

The functions of torch.cuda are stand-ins that write down their calls and keep the current stream;
as torch's own, a capture that fails leaves it as it is.
"""

import contextlib

import pytest
import torch

from detr_fast.inference.graphs import CudaCapture

DEVICE = torch.device("cuda", 1)


class Streams:
    """Stand-ins for what a capture calls, with the log of what happened on which stream."""

    def __init__(self):
        self.current = "caller's"
        self.log: list[tuple] = []

    def stream(self, device):
        assert device == DEVICE
        return _Stream(self, "side")

    def current_stream(self):
        return _Stream(self, self.current)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.log.append(("capture", stream.name, pool, capture_error_mode))
        before, self.current = self.current, stream.name
        yield
        self.current = before  # not after an error

    @contextlib.contextmanager
    def device(self, device):
        assert device == DEVICE
        yield


class _Stream:
    def __init__(self, streams: Streams, name: str):
        self.streams, self.name = streams, name

    def wait_stream(self, other):
        self.streams.log.append((self.name, "waits for", other.name))


class _Graph:
    def replay(self):
        pass


@pytest.fixture
def streams(monkeypatch):
    made = Streams()
    for name, stand_in in {
        "Stream": made.stream,
        "current_stream": made.current_stream,
        "stream": made.on,
        "graph": made.graph,
        "device": made.device,
        "CUDAGraph": _Graph,
        "graph_pool_handle": lambda: "the pool",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


def test_it_warms_up_on_the_side_and_captures_there(streams):
    def run():
        streams.log.append(("run", streams.current))
        return {"found": len(streams.log)}

    replay = CudaCapture(DEVICE)(run)
    assert streams.log == [
        ("side", "waits for", "caller's"),
        ("run", "side"),
        ("run", "side"),
        ("caller's", "waits for", "side"),
        ("capture", "side", "the pool", "thread_local"),
        ("run", "side"),
    ]
    assert replay() is replay()
    assert replay() == {"found": 6}


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_the_callers_stream_is_current_after_a_failure(calls, streams):
    runs = iter(range(calls))

    def run():
        if next(runs, None) is None:
            raise RuntimeError("out of memory")
        return {}

    with pytest.raises(RuntimeError, match="out of memory"):
        CudaCapture(DEVICE)(run)
    assert streams.current == "caller's"

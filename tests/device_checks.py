"""What tests on a GPU share: whether the kernels are there, waiting, and graphs."""

import contextlib
import os

import pytest
import torch

from detr_fast.ops._library import implementation


def require_kernel(operation: str) -> None:
    """Skips the test where an operation has no CUDA kernel; fails it where a GPU is required."""
    if implementation(operation, "cuda") == "CUDA kernel":
        return
    told = f"this installation has no CUDA kernel of {operation}: `detr-fast env` says why"
    if os.environ.get("DETR_FAST_REQUIRE_GPU") == "1":
        pytest.fail(told)
    pytest.skip(told)


@contextlib.contextmanager
def no_waiting():
    """Raises where torch waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(run):
    """A graph of `run` and what it returned while it was captured; warmed up before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result

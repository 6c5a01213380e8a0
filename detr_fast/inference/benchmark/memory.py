"""The memory that a call needs at most."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def with_peak_memory(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """What a call returns, and the most memory that it takes beyond what was taken before it.

    On a GPU as torch's allocator counts it. On a CPU as the kernel counts the process, after what
    it has free has been given back: libraries' own buffers are in it, and so is whatever other
    threads do meanwhile.

    Returns:
        The result, and bytes; None on a CPU where the system does not tell (other than Linux with
        glibc).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident("VmRSS")
        # The high-water mark starts anew from here.
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return call(), None
    result = call()
    return result, max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

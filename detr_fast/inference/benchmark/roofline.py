"""What the hardware can do at most, measured: arithmetic in a matrix product, bytes in a copy."""

import torch

from .timing import timed

# Side of the matrices, and numbers to copy: far beyond any cache.
_SIDES = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 2**26, "cuda": 2**28}
_REPEATS = 5


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large square matrix product, the best of several."""
    side = _SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _shortest(lambda: left @ right, device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s read and written by a large copy, the best of several."""
    source = torch.zeros(_COPIED[device.type], device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / _shortest(lambda: target.copy_(source), device)


def _shortest(call, device: torch.device) -> float:
    """Others' work on the machine can only lengthen it."""
    call()
    return min(timed(call, device)[1] for _ in range(_REPEATS))

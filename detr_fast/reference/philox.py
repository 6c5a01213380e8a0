"""Random bits that depend on a seed and a counter alone: Philox4x32 with 7 rounds.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(seed: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The first 32 bits for each counter.

    Args:
        seed: (1,) int64, the key.
        low, high: int64 that broadcast, of which the lower 32 bits are the first two words of the
            counter; the other two are 0.

    Returns:
        int64 in [0, 2**32).
    """
    keys = [seed & _LOW, (seed >> 32) & _LOW]
    words = [low & _LOW, high & _LOW, torch.zeros_like(low), torch.zeros_like(low)]
    for _ in range(7):
        first, second = _product(0xD2511F53, words[0]), _product(0xCD9E8D57, words[2])
        words = [second[0] ^ words[1] ^ keys[0], second[1], first[0] ^ words[3] ^ keys[1], first[1]]
        keys = [(keys[0] + 0x9E3779B9) & _LOW, (keys[1] + 0xBB67AE85) & _LOW]
    return words[0]


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product; 64 bits with a sign do not hold it at once."""
    lower = a * (b & 0xFFFF)
    upper = a * (b >> 16) + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)

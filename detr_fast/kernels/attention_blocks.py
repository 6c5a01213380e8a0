"""The block sizes of the attention kernels: one plain table, without Triton.

`python benchmarks/paper triton` compiles every entry and reports its registers, spills and shared
memory; `benchmarks/tune_attention.py` measures candidates where there is a GPU. None spills.
"""

from typing import NamedTuple

HEAD_SIZES = (16, 32, 64, 128)
ARCHITECTURES = (80, 90)
# Up to here queries are "few": tiles are small, and keys are split to fill the device.
FEW_QUERIES = 128
# Shared memory that a program may use on every GPU of the architecture: the smallest of 8.x (8.6,
# 8.9) and 12.x for 80; that of 9.0 and 10.0 for 90.
SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024}


class Blocks(NamedTuple):
    """Queries and keys of a tile, warps of a program, and stages of its pipeline of loads."""

    queries: int
    keys: int
    warps: int
    stages: int


class Entry(NamedTuple):
    """The blocks of each kernel."""

    forward: Blocks
    query_gradient: Blocks
    key_gradient: Blocks


# (architecture, bits of an element, queries, head size rounded up) -> blocks of the three kernels.
_ROWS = {
    (80, 16, "many", 16): ((128, 64, 4, 3), (128, 64, 4, 3), (64, 64, 4, 3)),
    (80, 16, "many", 32): ((128, 64, 4, 3), (128, 64, 4, 3), (64, 64, 4, 3)),
    (80, 16, "many", 64): ((128, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2)),
    (80, 16, "many", 128): ((128, 32, 8, 3), (64, 32, 4, 2), (32, 64, 4, 2)),
    (80, 16, "few", 16): ((64, 64, 4, 3), (32, 64, 4, 3), (32, 64, 4, 3)),
    (80, 16, "few", 32): ((64, 64, 4, 3), (32, 64, 4, 3), (32, 64, 4, 3)),
    (80, 16, "few", 64): ((64, 64, 4, 3), (32, 64, 4, 2), (32, 64, 4, 2)),
    (80, 16, "few", 128): ((64, 32, 4, 3), (32, 32, 4, 2), (32, 32, 4, 2)),
    (80, 32, "many", 16): ((64, 32, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)),
    (80, 32, "many", 32): ((64, 32, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)),
    (80, 32, "many", 64): ((64, 16, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (80, 32, "many", 128): ((16, 32, 4, 2), (16, 32, 4, 1), (32, 16, 4, 1)),
    (80, 32, "few", 16): ((32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (80, 32, "few", 32): ((32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (80, 32, "few", 64): ((32, 32, 8, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (80, 32, "few", 128): ((16, 32, 4, 2), (16, 32, 4, 1), (32, 16, 4, 1)),
    (90, 16, "many", 16): ((128, 64, 4, 3), (128, 64, 4, 3), (64, 128, 4, 3)),
    (90, 16, "many", 32): ((128, 64, 4, 3), (128, 64, 4, 3), (64, 128, 4, 3)),
    (90, 16, "many", 64): ((128, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (90, 16, "many", 128): ((128, 64, 8, 3), (64, 64, 8, 2), (64, 64, 8, 2)),
    (90, 16, "few", 16): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (90, 16, "few", 32): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (90, 16, "few", 64): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (90, 16, "few", 128): ((64, 64, 4, 3), (64, 32, 4, 2), (64, 32, 4, 2)),
    (90, 32, "many", 16): ((64, 32, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)),
    (90, 32, "many", 32): ((64, 32, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)),
    (90, 32, "many", 64): ((64, 16, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (90, 32, "many", 128): ((16, 32, 4, 2), (16, 32, 4, 1), (32, 16, 4, 1)),
    (90, 32, "few", 16): ((32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (90, 32, "few", 32): ((32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (90, 32, "few", 64): ((32, 32, 8, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    (90, 32, "few", 128): ((16, 32, 4, 2), (16, 32, 4, 1), (32, 16, 4, 1)),
}
TABLE = {key: Entry(*(Blocks(*blocks) for blocks in row)) for key, row in _ROWS.items()}
# With dropout random bits take as many registers as the scores. Up to 8 warps have more of them;
# where even these would spill tiles are smaller.
_WITH_DROPOUT = {
    (80, 16, "many", 16): {"key_gradient": Blocks(64, 64, 4, 3)},
    (80, 16, "many", 64): {"key_gradient": Blocks(64, 32, 4, 2)},
    (80, 32, "many", 32): {"key_gradient": Blocks(64, 16, 8, 2)},
    (80, 32, "few", 32): {"key_gradient": Blocks(64, 16, 8, 2)},
    (90, 16, "many", 64): {"key_gradient": Blocks(64, 32, 4, 3)},
    (90, 16, "many", 128): {
        "query_gradient": Blocks(128, 32, 8, 2),
        "key_gradient": Blocks(128, 32, 8, 2),
    },
    (90, 16, "few", 64): {"key_gradient": Blocks(64, 32, 4, 3)},
    (90, 32, "few", 32): {"key_gradient": Blocks(64, 16, 8, 2)},
}


def table_key(architecture: int, element_size: int, queries: int, head_size: int) -> tuple:
    """The key of `TABLE` for a problem.

    Args:
        architecture: compute capability of the device, 80 for 8.0.
        element_size: bytes of an element.
        queries: number of queries L.
        head_size: D, 1 to 128.
    """
    known = 90 if 90 <= architecture < 120 else 80
    amount = "few" if queries <= FEW_QUERIES else "many"
    rounded = next(size for size in HEAD_SIZES if size >= head_size)
    return known, 8 * element_size, amount, rounded


def entry_of(key: tuple, dropout: bool) -> Entry:
    """The blocks of the problems of a key of `TABLE`."""
    entry = TABLE[key]
    # Tiles of few queries of head size 16 are too small for more warps: a thread would load less
    # than 16 bytes.
    if not dropout or key[2:] == ("few", 16):
        return entry
    wider = Entry(*(blocks._replace(warps=max(blocks.warps, 8)) for blocks in entry))
    return wider._replace(**_WITH_DROPOUT.get(key, {}))


def splits(queries: int, keys: int) -> int:
    """Into how many shares keys are split. It depends on one image alone, whatever the batch."""
    return min(16, -(-keys // 512)) if 0 < queries <= FEW_QUERIES and keys else 1

"""What a kernel's PTX says of its memory accesses and its matrix instructions."""

import re
from collections import Counter
from typing import NamedTuple

_GLOBAL = re.compile(
    r"\b(?P<kind>ld|st)\.global(?P<flags>[.\w:]*?)(?:\.v(?P<vector>\d))?\.[busf](?P<bits>\d+)\b"
)
_ASYNC = re.compile(
    r"\bcp\.async\.c[ag]\.shared\.global[.\w:]*\s+\[[^]]*\],\s*\[[^]]*\],\s*(0x)?(\w+)"
)
_MATRIX = re.compile(r"\b(wgmma\.mma_async|mma\.sync)\b")
_LOCAL = re.compile(r"\b(?:ld|st)\.local\b|^\s*\.local\b", re.MULTILINE)
_ENTRY = re.compile(r"^\s*(?:\.visible\s+)?\.entry\s+(?P<name>\w+)", re.MULTILINE)
_THREADS = re.compile(r"\.(?:max|req)ntid\s+(\d+)")


class Instructions(NamedTuple):
    """Counts of instructions in a kernel's text.

    Attributes:
        loads, stores: of device memory by bytes of an access of a thread.
        copies: asynchronous ones from device to shared memory, likewise.
        matrix: products on matrix units by name, "mma.sync" or "wgmma.mma_async".
        local: accesses and declarations of local memory.
        threads: of a block, 0 where the text does not limit them.
    """

    loads: dict[int, int]
    stores: dict[int, int]
    copies: dict[int, int]
    matrix: dict[str, int]
    local: int
    threads: int

    def widest(self) -> int:
        """Bytes of the widest access that brings numbers from device memory."""
        return max((*self.loads, *self.copies), default=0)


def entries(ptx: str) -> dict[str, str]:
    """The text of each kernel by its name."""
    starts = list(_ENTRY.finditer(ptx))
    ends = [*(start.start() for start in starts[1:]), len(ptx)]
    return {
        start["name"]: ptx[start.start() : end] for start, end in zip(starts, ends, strict=True)
    }


def read(text: str) -> Instructions:
    """Reads the text of one kernel, as `entries` gives it."""
    accesses: dict[str, Counter] = {"ld": Counter(), "st": Counter()}
    for found in _GLOBAL.finditer(text):
        width = int(found["bits"]) // 8 * int(found["vector"] or 1)
        accesses[found["kind"]][width] += 1
    copies = Counter(
        int(size, 16 if hexadecimal else 10) for hexadecimal, size in _ASYNC.findall(text)
    )
    threads = _THREADS.search(text)
    return Instructions(
        dict(accesses["ld"]),
        dict(accesses["st"]),
        dict(copies),
        dict(Counter(_MATRIX.findall(text))),
        len(_LOCAL.findall(text)),
        int(threads[1]) if threads else 0,
    )

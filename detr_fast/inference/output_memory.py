"""Memory of outputs that are gone, kept for those to come."""

from collections.abc import Iterator
from contextlib import contextmanager

from .. import _extension


class OutputMemory:
    """What the large outputs of the compiled operations on a CPU are written to.

    The C library takes blocks of tens of megabytes from the system for each of them and gives them
    back after it, which takes the pages away and, for the next image, clears as many anew. Here
    they stay, at most twice as much as was in use at once, until this object and all outputs are
    gone. `kept_memory.keep_freed_memory` does the same for the whole process.

    Where nothing is compiled it does nothing. It may be used by several threads; copies, pickled
    ones too, begin empty.
    """

    def __init__(self):
        compiled = _extension.module()
        self._memory = compiled.OutputMemory() if compiled else None

    @property
    def bytes(self) -> int:
        """Held, in use or not."""
        return self._memory.bytes if self._memory else 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Outputs of this thread within the block come from here."""
        compiled = _extension.module()
        if not compiled:
            yield
            return
        before = compiled.use_output_memory(self._memory)
        try:
            yield
        finally:
            compiled.use_output_memory(before)

    def __reduce__(self):
        return type(self), ()

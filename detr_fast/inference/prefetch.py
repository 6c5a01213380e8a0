"""Batches that are read while the model is still busy with the one before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


def read_ahead(
    read: Callable[[_Item], _Read], batches: Iterable[Sequence[_Item]], threads: int
) -> Iterator[list[_Read]]:
    """Reads the items of each batch in threads, one batch ahead of whoever asks for them.

    Decoders and resizing let go of Python's lock, so that they run beside the model and beside each
    other. Beside the batch that is given out, one more is held.

    Args:
        read: what to do with an item; called in the threads, several at a time.
        batches: the items of each batch.
        threads: how many read; 0 reads each batch when it is asked for, in the caller's thread.

    Yields:
        What `read` returns for the items of a batch, in their order.

    Raises:
        Exception: that of the first item of a batch whose `read` raises, when its batch is asked
            for. What was not begun by then is not read.
    """
    if threads == 0:
        for batch in batches:
            yield [read(item) for item in batch]
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read_ahead")
    try:
        ahead: list[Future] = []
        for batch in batches:
            current, ahead = ahead, [pool.submit(read, item) for item in batch]
            if current:
                yield _results(current)
        if ahead:
            yield _results(ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _results(futures: list[Future]) -> list:
    """What they give; they are forgotten, so that nothing outlives its use."""
    results = [future.result() for future in futures]
    futures.clear()
    return results

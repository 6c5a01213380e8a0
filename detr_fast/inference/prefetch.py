"""Batches that are read while the model is still busy with the one before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")
_Batch = TypeVar("_Batch")


def read_ahead(
    read: Callable[[_Item], _Read],
    batches: Iterable[Sequence[_Item]],
    threads: int,
    gather: Callable[[list[_Read]], _Batch] = list,
) -> Iterator[_Batch]:
    """Reads the items of each batch in threads, one batch ahead of whoever asks for them.

    Decoders and resizing let go of Python's lock, so that they run beside the model and beside each
    other. Beside the batch that is given out, one more is held.

    Args:
        read: what to do with an item; called in the threads, several at a time.
        batches: the items of each batch.
        threads: how many read; 0 reads each batch when it is asked for, in the caller's thread.
        gather: makes a batch of what `read` returned for its items, in their order; called in one
            of the threads.

    Yields:
        What `gather` returns for each batch.

    Raises:
        Exception: that of the first item of a batch whose `read` raises, when its batch is asked
            for. What was not begun by then is not read.
    """
    if threads == 0:
        for batch in batches:
            yield gather([read(item) for item in batch])
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read_ahead")

    def begin(batch: Sequence[_Item]) -> list[Future]:
        items = [pool.submit(read, item) for item in batch]
        # A thread that waits here for the others waits for what was begun before it: a pool begins
        # tasks in their order.
        return [pool.submit(lambda: gather(_results(items)))]

    try:
        ahead: list[Future] = []
        for batch in batches:
            current, ahead = ahead, begin(batch)
            if current:
                yield _results(current)[0]
        if ahead:
            yield _results(ahead)[0]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _results(futures: list[Future]) -> list:
    """What they give; they are forgotten, so that nothing outlives its use."""
    results = [future.result() for future in futures]
    futures.clear()
    return results

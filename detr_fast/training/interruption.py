"""Ctrl-C and SIGTERM, answered when the weights are whole."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType


class Interruption:
    """Watches for SIGINT and SIGTERM while it is entered.

    A signal raises KeyboardInterrupt, except within `deferred`, where the first one is only
    remembered, so that the caller can finish a step and save. Outside the main thread, where
    Python cannot catch signals, it does nothing.

    Attributes:
        signal: Number of the first signal that came, None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferring = False
        self._process = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Remembers the first signal instead of raising; a second one raises all the same."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @property
    def exit_code(self) -> int:
        """What a shell calls a process that the signal ended; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked loader worker: the terminal interrupts it too, but its parent, which still
            # wants the batch, is the one to decide.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        first = self.signal is None
        if first:
            self.signal = number
        if not (first and self._deferring):
            raise KeyboardInterrupt

"""What a user sees while training runs: one bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from typing import NamedTuple, TextIO

from tqdm import tqdm

# Steps over which speed and waiting are averaged.
_WINDOW = 50
_SECONDS_BETWEEN_LINES = 10.0


class _Step(NamedTuple):
    seconds: float
    waiting: float
    images: int


class Progress:
    """Reports the steps of a training run.

    Args:
        epochs: Number of epochs of the whole run.
        steps_per_epoch: Optimizer steps in each.
        done: Steps that an earlier run has taken.
        enabled: False prints nothing, as on every process but the first.
        stream: Where to; standard output if None.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        done: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._stream = sys.stdout if stream is None else stream
        self._enabled = enabled
        self._done = self._start = done
        self._recent: deque[_Step] = deque(maxlen=_WINDOW)
        self._started_at = time.monotonic()
        self._line_at = self._started_at
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=epochs * steps_per_epoch,
                initial=done,
                file=self._stream,
                dynamic_ncols=True,
                unit="step",
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}{postfix}]",
            )

    def step(self, loss: float, lr: float, images: int, seconds: float, waiting: float) -> None:
        """Reports a step.

        Args:
            loss: Its loss.
            lr: Largest learning rate.
            images: Images it took, over all processes.
            seconds: How long it took in all.
            waiting: How much of that was waiting for data.
        """
        if not self._enabled:
            return
        self._done += 1
        self._recent.append(_Step(seconds, waiting, images))
        if self._bar is not None:
            self._bar.set_description_str(self._epoch_name(), refresh=False)
            self._bar.set_postfix_str(self._figures(loss, lr), refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        first = self._done == self._start + 1
        if first or now - self._line_at >= _SECONDS_BETWEEN_LINES:
            self._line_at = now
            step = (self._done - 1) % self._steps_per_epoch + 1
            self._print(
                f"{self._epoch_name()} step {step}/{self._steps_per_epoch}: "
                f"{self._figures(loss, lr)}, ETA {self._eta(now)}"
            )

    def phase(self, name: str) -> None:
        """Says on the bar that something other than a step is going on."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._epoch_name()}, {name}")

    def message(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self) -> None:
        """Ends the bar; later messages are plain lines."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _epoch_name(self) -> str:
        epoch = max(self._done - 1, 0) // self._steps_per_epoch + 1
        return f"epoch {epoch}/{self._epochs}"

    def _figures(self, loss: float, lr: float) -> str:
        seconds = max(sum(step.seconds for step in self._recent), 1e-9)
        images = sum(step.images for step in self._recent) / seconds
        waiting = sum(step.waiting for step in self._recent) / seconds
        return (
            f"loss {loss:.3f}, lr {lr:.1e}, {images:.1f} images/s, waiting for data {waiting:.0%}"
        )

    def _eta(self, now: float) -> str:
        total = self._epochs * self._steps_per_epoch
        each = (now - self._started_at) / (self._done - self._start)
        return tqdm.format_interval(each * (total - self._done))

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

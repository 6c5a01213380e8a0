"""What training prints: plain lines to a file, one bar on a terminal, nothing elsewhere."""

import io

import pytest

from detr_fast.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def _wide(monkeypatch):
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (140, 30))


def report(stream, **options):
    progress = Progress(2, 5, stream=stream, **options)
    for _ in range(6):
        progress.step(loss=3.25, lr=1e-4, images=8, seconds=0.5, waiting=0.1)
    progress.phase("evaluating")
    progress.message("epoch 1/2: AP 0.5")
    progress.close()
    return stream.getvalue()


def test_plain_lines_in_a_file():
    output = report(io.StringIO())
    assert "\r" not in output
    first, *_, last = output.splitlines()
    assert first.startswith(
        "epoch 1/2 step 1/5: loss 3.250, lr 1.0e-04, 16.0 images/s, waiting for data 20%, ETA "
    )
    assert last == "epoch 1/2: AP 0.5"


@pytest.mark.usefixtures("_wide")
def test_one_bar_on_a_terminal():
    output = report(Terminal())
    bar = output.split("\r")[-1]
    assert "epoch 2/2, evaluating" in output
    assert "6/10" in bar
    assert "loss 3.250, lr 1.0e-04, 16.0 images/s, waiting for data 20%" in bar
    assert "epoch 1/2: AP 0.5\n" in output


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_processes_are_quiet(stream):
    assert report(stream(), enabled=False) == ""

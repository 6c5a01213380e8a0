"""A part of the measurements: its cases, and the process that goes through them.

A part is a module of `gpu.parts` with `cases(setting)`, which plans without touching the device.
Every row is written as soon as it is there, so that it survives whatever comes after.
"""

import gc
import importlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from detr_fast._environment import clocks

from .setting import Setting

MEASURED, ABSENT, NOT_RUN, FAILED = "measured", "absent", "not run", "FAILED"
OURS = "detr_fast"


class UnavailableError(Exception):
    """A peer cannot do this here; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """What one case costs.

    Attributes:
        seconds: of one call.
        images: that one call works on, 0 where it is not about images.
        bytes: that must at least be moved in device memory, each input read and each output
            written once; 0 where not counted.
        flops: floating-point operations that must be done on matrix units; 0 where not counted.
        floor_seconds: the least that this device could take, where it is known better than from
            `bytes` and `flops`.
        peak_mib: of device memory, None where not measured.
        extra: other figures by name.
    """

    seconds: float
    images: int = 0
    bytes: float = 0
    flops: float = 0
    floor_seconds: float | None = None
    peak_mib: float | None = None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row to be.

    Attributes:
        what: the work, the same for everybody who is measured at it.
        who: whose work it is, `OURS` or a peer.
        measure: checks the result, then measures it. Raises ImportError or UnavailableError where a
            peer is not there.
    """

    what: str
    who: str
    measure: Callable[[], Measurement]


def run_part(name: str, setting: Setting, seconds: float, file: Path) -> None:
    """Measures the cases of a part as long as its time lasts; a JSON row a line."""
    deadline = time.monotonic() + seconds
    cases = importlib.import_module(f"gpu.parts.{name}").cases(setting)
    with file.open("w") as rows:

        def write(row: dict) -> None:
            rows.write(json.dumps(row) + "\n")
            rows.flush()

        write({"planned": [[case.what, case.who] for case in cases]})
        for case in cases:
            torch.manual_seed(0)
            row = {"part": name, "what": case.what, "who": case.who}
            if time.monotonic() > deadline:
                write({**row, "status": NOT_RUN, "note": f"the part's {seconds:.0f} s were over"})
                continue
            try:
                write({**row, "status": MEASURED, **asdict(case.measure())})
            except (ImportError, UnavailableError) as error:
                write({**row, "status": ABSENT, "note": str(error)})
            except Exception as error:
                # Whatever becomes of one case, the others are measured.
                traceback.print_exc()
                note = f"{type(error).__name__}: {error}".partition("\n")[0]
                write({**row, "status": FAILED, "note": note})
            if setting.on_gpu:
                # Models and their graphs refer to each other.
                gc.collect()
                torch.cuda.empty_cache()
        write({"clocks": clocks()})


def read_part(file: Path, why_not: str) -> tuple[list[dict], dict]:
    """The rows of a part, and the clocks at its end.

    What it planned and did not come to is "not run", because `why_not`.
    """
    # The process may have been ended in the middle of a line.
    text = file.read_text().rpartition("\n")[0] if file.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    rows = [line for line in lines if "what" in line]
    measured = {(row["what"], row["who"]) for row in rows}
    planned = [tuple(pair) for line in lines for pair in line.get("planned", [])]
    rows += [
        {"part": file.stem, "what": what, "who": who, "status": NOT_RUN, "note": why_not}
        for what, who in planned or [("everything", OURS)]
        if (what, who) not in measured
    ]
    return rows, next((line["clocks"] for line in lines if "clocks" in line), {})

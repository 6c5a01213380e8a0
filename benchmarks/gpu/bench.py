"""The measurements: each part in a process of its own, within a share of the time.

A part that crashes, hangs or breaks the device's context takes nothing from the others; a part that
is done early leaves its time to those after it.
"""

import sys
from pathlib import Path

from .part import read_part
from .steps import Steps

# Parts in their order, and their shares of the time. Ceilings first: the others are compared with
# them. Theirs is the time in which torch is read from the disk for the first time, too.
SHARES = {
    "ceilings": 2,
    "assignment": 2,
    "matching": 2,
    "criterion": 2,
    "attention": 4,
    "inference": 8,
    "training": 4,
}
# To end a process after its part's time, should its last case not come to an end by itself.
GRACE = 10


def bench(steps: Steps, parts: list[str]) -> tuple[list[dict], dict]:
    """Runs parts, the ceilings always.

    Returns:
        All rows, and the clocks at the end of each part.
    """
    asked = [part for part in SHARES if part in parts or part == "ceilings"]
    rows: list[dict] = []
    clocks: dict[str, dict] = {}
    for i, part in enumerate(asked):
        share = SHARES[part] / sum(SHARES[other] for other in asked[i:])
        limit = share * steps.left()
        file = steps.folder / f"{part}.jsonl"
        file.unlink(missing_ok=True)
        command = [sys.executable, "benchmarks/gpu", "part", part, "--device", steps.device]
        command += ["--seconds", str(max(limit - GRACE, 1)), "--file", file]
        # The interpreter has to be chosen before Triton is imported.
        environ = {} if steps.device == "cuda" else {"TRITON_INTERPRET": "1"}
        steps.run(f"bench_{part}", command, limit, **environ)
        found, clocks[part] = read_part(file, steps.outcomes[-1]["outcome"])
        rows += found
    return rows, clocks


def run_part_process(name: str, device: str, seconds: float, file: Path) -> None:
    """What the process of a part does."""
    from .part import run_part
    from .setting import Setting

    run_part(name, Setting(device), seconds, file)

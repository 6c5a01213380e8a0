"""What the figures depend on: hardware, driver, versions, commit, clocks."""

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CLOCKS = (
    *("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
    *("power.limit", "power.draw", "temperature.gpu"),
)


def record(commit: str | None = None) -> dict:
    """Everything but the figures; JSON-serialisable.

    Args:
        commit: of the checkout, where it is a copy without its history.
    """
    from peers import installed_versions

    from detr_fast._environment import environment

    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **_revision(commit),
        "load": os.getloadavg()[0],
        "environment": environment(),
        "packages": installed_versions(),
    }


def _revision(commit: str | None) -> dict:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": head or commit or "unknown", "uncommitted": head is not None and changed}


def clocks() -> dict[str, str]:
    """What the driver says of clocks, power and temperature now; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = [command, f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        return {}
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(_CLOCKS, values, strict=True))

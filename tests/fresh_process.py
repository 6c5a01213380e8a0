"""Runs Python code in a process of its own, with the copy of detr_fast that this process has."""

import os
import subprocess
import sys
from pathlib import Path

import detr_fast


def run_python(code: str, folder: Path, *arguments: str, **environ: str):
    """Runs `code` in `folder`, which must not hold a package detr_fast: it would come first.

    Returns:
        The `subprocess.CompletedProcess`, with its output as text.
    """
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(detr_fast.__file__).parents[1]), **environ},
    )

"""Build, tests and sanitizers: commands with a time limit, their output in files."""

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .record import ROOT

PASSED = "passed"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PROGRAMS = ("cuda", "triton")
ATTENTION_TESTS = "tests/test_attention_kernels.py"
# The checkout, before whatever else was asked for.
_PATHS = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
_ENVIRON = {"PYTHONPATH": os.pathsep.join(_PATHS), "PYTHONUNBUFFERED": "1"}


class Steps:
    """Runs commands in the checkout, one after another, as long as their time lasts.

    Args:
        folder: where the output of each goes, as <step>.log.
        device: "cuda" or "cpu".
        seconds: that all of them may take together.
    """

    def __init__(self, folder: Path, device: str, seconds: float):
        self.folder, self.device = folder, device
        self.outcomes: list[dict] = []
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left."""
        return self._deadline - time.monotonic()

    def run(self, step: str, command: list, limit: float | None = None, **environ: str) -> bool:
        """Whether the command passed; at most for `limit` seconds, and for what is left."""
        limit = min(self.left(), limit or self.left())
        if limit <= 0:
            return self.note(step, "NOT RUN: the time of this subcommand was over")
        start = time.monotonic()
        with (self.folder / f"{step}.log").open("w") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env={**os.environ, **_ENVIRON, **environ},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                outcome = PASSED if code == 0 else f"FAILED, exit status {code}: see {step}.log"
            except subprocess.TimeoutExpired:
                outcome = f"FAILED, not done after {limit:.0f} s: see {step}.log"
            finally:
                # Compilers and workers that it started, too.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return self.note(step, outcome, time.monotonic() - start)

    def note(self, step: str, outcome: str, seconds: float = 0.0) -> bool:
        """Records an outcome, and tells whether the step passed."""
        self.outcomes.append({"step": step, "outcome": outcome, "seconds": seconds})
        print(f"{step}: {outcome} ({seconds:.0f} s)", flush=True)
        return outcome == PASSED


def environment(steps: Steps) -> bool:
    """Whether the device and its kernels are there; what is, is in the log."""
    command = [sys.executable, "benchmarks/gpu", "environment", "--device", steps.device]
    return steps.run("environment", command)


def build(steps: Steps) -> None:
    """Compiles the extension in the checkout; takes nothing from a package index."""
    kernels = "1" if steps.device == "cuda" else "0"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if steps.run("build", command, DETR_FAST_CUDA=kernels):
        environment(steps)


def test(steps: Steps) -> None:
    """All tests, those of kernels first; on a GPU the want of one or of kernels is a failure.

    Each file with tests of kernels has a process of its own, as a kernel that breaks the device's
    context takes all that come after it in its process.
    """
    if not environment(steps):
        steps.note("tests", "NOT RUN: see environment.log")
        return
    # With a line for each test, so that one that hangs is named.
    pytest = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-rfEs", "-p", "no:cacheprovider"]
    # A test file whose packages are missing fails, and does not keep the others from running.
    pytest.append("--continue-on-collection-errors")
    if steps.device == "cpu":
        steps.run("test_zero_outside", [*pytest, "tests/test_zero_outside.py"])
        return
    required = {"DETR_FAST_REQUIRE_GPU": "1"}
    marked = [file for file in sorted(ROOT.glob("tests/**/test_*.py")) if _needs_gpu(file)]
    planned = [(file.stem, ["-m", "cuda", file]) for file in marked]
    planned.insert(0, (Path(ATTENTION_TESTS).stem, [ATTENTION_TESTS]))
    others = ["-m", "not cuda and not slow", f"--ignore={ATTENTION_TESTS}", "tests"]
    planned.append(("other_tests", [*_in_parallel(), *others]))
    for done, (step, arguments) in enumerate(planned):
        # One that hangs leaves the others their time.
        limit = steps.left() / 2 if done + 1 < len(planned) else None
        threads = {"OMP_NUM_THREADS": "2"} if step == "other_tests" else {}
        steps.run(step, [*pytest, *arguments], limit, **required, **threads)


def sanitize(steps: Steps) -> None:
    """Every kernel on small problems in each tool of compute-sanitizer; on a CPU without one."""
    program = [sys.executable, "benchmarks/gpu", "small", "--device", steps.device, "--kernels"]
    if steps.device == "cpu":
        steps.run("small_cuda", [*program, "cuda"])
        steps.run("small_triton", [*program, "triton"], TRITON_INTERPRET="1")
        return
    sanitizer = _sanitizer()
    planned = list(itertools.product(TOOLS, PROGRAMS))
    for done, (tool, kernels) in enumerate(planned):
        step = f"{tool}_{kernels}"
        if sanitizer is None:
            steps.note(step, "NOT RUN: no compute-sanitizer on PATH or in a toolkit")
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *program, kernels]
        # Some are slower than others, but none takes all of their time.
        limit = 3 * steps.left() / (len(planned) - done + 2)
        # Every tensor is an allocation of its own, so that none hides what is next to another.
        steps.run(step, command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def _needs_gpu(file: Path) -> bool:
    return "mark.cuda" in file.read_text()


def _in_parallel() -> list[str]:
    """Options that give pytest several processes, where it has the plugin for it."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(max(1, (os.cpu_count() or 1) // 2))]


def _sanitizer() -> str | None:
    """Path of compute-sanitizer, on PATH or in a toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", "")]
    places += [str(Path(home, "bin")) for home in homes if home]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))

"""Everything of detr_fast that needs a GPU, in one command.

    python benchmarks/gpu.py --output FOLDER [--only tests sanitizers timings]

Builds nothing and downloads nothing: install with the CUDA kernels for the card first
(`DETR_FAST_CUDA=1 pip install --no-build-isolation .`, or `setup.py build_ext --inplace`). Runs

    tests       all tests marked `cuda`; want of a GPU or of kernels is a failure, not a skip
    sanitizers  memcheck, racecheck, synccheck and initcheck of compute-sanitizer on gpu_small.py
    timings     bench_cuda.py

one after another, whatever became of those before, and leaves in FOLDER the output of each as
<step>.log, the files of bench_cuda.py, and summary.md: what passed, what failed, what was not run
and why. Exits with 0 only if everything ran and passed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("tests", "sanitizers", "timings")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
LIMIT = 1800  # seconds for one command


def run(name: str, command: list[str], folder: Path, **environ: str) -> tuple[str, str]:
    """Runs a command in the checkout, its output into <name>.log; tells what became of it."""
    start = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            ).returncode
            became = "passed" if code == 0 else f"FAILED, exit status {code}"
        except subprocess.TimeoutExpired:
            became = f"FAILED, not done after {LIMIT} s"
    return name, f"{became} ({time.monotonic() - start:.0f} s)"


def sanitizer() -> str | None:
    """Path of compute-sanitizer, on PATH or in a toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", "")]
    places += [str(Path(home, "bin")) for home in homes if home]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def run_step(step: str, folder: Path) -> list[tuple[str, str]]:
    python = sys.executable
    if step == "tests":
        command = [python, "-m", "pytest", "-q", "-rA", "-m", "cuda", "tests"]
        return [run("tests", command, folder, DETR_FAST_REQUIRE_GPU="1")]
    if step == "timings":
        command = [python, "benchmarks/bench_cuda.py", "--output", str(folder)]
        return [run("timings", command, folder)]
    program = sanitizer()
    if program is None:
        told = "NOT RUN: no compute-sanitizer on PATH, in CUDA_HOME or in /usr/local/cuda"
        return [(tool, told) for tool in TOOLS]
    return [
        run(
            tool,
            [program, "--tool", tool, "--error-exitcode", "9", python, "benchmarks/gpu_small.py"],
            folder,
            # Every tensor is an allocation of its own, so that none hides what is next to another.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        for tool in TOOLS
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args()
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    about = "import detr_fast, torch; print(torch.cuda.get_device_name(), detr_fast.build_info())"
    name, became = run("environment", [sys.executable, "-c", about], folder)
    outcomes = [(name, became)]
    for step in arguments.only:
        if became.startswith("passed"):
            outcomes += run_step(step, folder)
        else:
            outcomes.append((step, "NOT RUN: no usable GPU or package, see environment.log"))
    lines = [f"- {name}: {became}" for name, became in outcomes]
    lines += [f"- {step}: NOT RUN, not asked for" for step in STEPS if step not in arguments.only]
    summary = "\n".join(lines) + "\n"
    (folder / "summary.md").write_text(summary)
    print(summary)
    if not all(became.startswith("passed") for _, became in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

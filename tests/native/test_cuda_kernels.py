"""The kernels of csrc/cuda, run on the host by fibers (see cuda_on_host/): no GPU, no toolkit.

They are compared with the solver on one lane and with the CPU kernels: every index, every bit of a
cost, every byte that is cleared. What this cannot show is named in tests/test_cuda.py, which needs
a GPU.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CXX = shutil.which("g++")
# What the minimum over a warp is made of: shuffles, or from compute capability 8.0 on reductions in
# hardware.
SHUFFLES, REDUCTIONS = "750", "900"

pytestmark = pytest.mark.skipif(
    CXX is None or sys.platform != "linux", reason="needs g++ and Linux"
)


def run(folder: Path, csrc: Path, *flags: str) -> subprocess.CompletedProcess:
    program = folder / "cuda_test"
    sources = [
        HERE / "cuda_test.cpp",
        csrc / "cuda/assign_plan.cpp",
        *sorted(CSRC.glob("cpu/kernels*.cpp")),
    ]
    command = [CXX, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command += ["-ffp-contract=off", *flags, f"-I{HERE / 'cuda_on_host'}", f"-I{csrc}"]
    done = subprocess.run(
        [*command, *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find -l" in done.stderr:
        pytest.skip(f"the compiler has no library for {' '.join(flags)}")
    assert done.returncode == 0, done.stderr
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=300)


def test_kernels_agree_with_the_cpu(tmp_path):
    done = run(tmp_path, CSRC, f"-D__CUDA_ARCH__={REDUCTIONS}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", [SHUFFLES, REDUCTIONS])
def test_kernels_stay_within_their_memory(tmp_path, arch):
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    done = run(tmp_path, CSRC, f"-D__CUDA_ARCH__={arch}", *sanitize)
    assert done.returncode == 0, done.stdout + done.stderr


BARRIERS = [
    (name, k)
    for name in ("assign_kernel.h", "lanes.h", "matching_kernel.h")
    for k in range(len(re.findall(r"  __syncthreads\(\);", (CSRC / "cuda" / name).read_text())))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "removed"), BARRIERS)
def test_every_barrier_is_needed(tmp_path, name, removed):
    """Without any one of them some order of the threads goes wrong, so the test can fail."""
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / "cuda" / name).read_text()
    place = list(re.finditer(r"  __syncthreads\(\);", text))[removed]
    (csrc / "cuda" / name).write_text(text[: place.start()] + text[place.end() :])
    done = run(tmp_path, csrc, f"-D__CUDA_ARCH__={REDUCTIONS}")
    assert done.returncode != 0

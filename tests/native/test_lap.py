"""csrc/lap.h alone, compiled by the host compiler: sanitizers, several lanes, SciPy's optima."""

import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from problems import KINDS, optimum, problem

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PROGRAM = Path(__file__).with_name("lap_test.cpp")
CXX = shutil.which("g++")
SLOTS = ("memory", "registers")

pytestmark = pytest.mark.skipif(
    CXX is None or sys.platform != "linux", reason="needs g++ and Linux"
)


def write_problems(path: Path, count: int, largest: int, seed: int) -> Path:
    """Writes problems of every kind and their optimal costs as lap_test.cpp reads them."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for k in range(count):
            rows, columns = (int(n) for n in rng.integers(0, largest + 1, 2))
            cost = problem(rng, rows, columns, KINDS[k % len(KINDS)])
            if k % 4 == 0:
                cost = cost.astype(np.float64)
            if k % 50 == 49 and cost.size:
                cost[rng.integers(rows), rng.integers(columns)] = rng.choice([np.nan, -np.inf])
            expected = optimum(cost)
            file.write(struct.pack("iii", rows, columns, cost.itemsize))
            file.write(struct.pack("d", np.nan if expected is None else expected))
            file.write(cost.tobytes())
    return path


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of csrc in which small problems bid as large ones do."""
    copy = shutil.copytree(CSRC, tmp_path / "csrc", ignore=shutil.ignore_patterns("cuda"))
    header = copy / "lap.h"
    text, count = re.subn(r"(kFewestThatBid) = \d+", r"\1 = 2", header.read_text())
    assert count == 1
    header.write_text(text)
    return copy


def build(folder: Path, include: Path, *flags: str, kernels: bool = False) -> Path:
    sources = map(str, sorted(include.glob("cpu/kernels*.cpp"))) if kernels else ()
    program = folder / "lap_test"
    command = [CXX, "-std=c++20", "-Wall", "-Wextra", "-pthread", f"-I{include}", *flags]
    done = subprocess.run(
        [*command, str(PROGRAM), *sources, "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find -l" in done.stderr:
        pytest.skip(f"the compiler has no library for {' '.join(flags)}")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return program


def run(program: Path, problems: Path, *lanes: int, slots=SLOTS) -> subprocess.CompletedProcess:
    # Lanes that race may wait for each other for ever: the first race ends the program.
    environ = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    command = [str(program), str(problems)]
    command += [argument for pair in itertools.product(map(str, lanes), slots) for argument in pair]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)


def test_optimal_and_equal_for_any_lanes_without_undefined_behaviour(tmp_path, sources):
    """One lane, threads as lanes and the SIMD kernels, under ASan and UBSan."""
    program = build(
        tmp_path,
        sources,
        "-O1",
        "-g",
        "-ffp-contract=off",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-DWITH_CPU_KERNELS",
        kernels=True,
    )
    done = run(program, write_problems(tmp_path / "many", 1500, 48, seed=1))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "portable: 1500 problems, 0 wrong" in done.stdout
    assert "portable, columns first: 1500 problems, 0 wrong" in done.stdout
    done = run(program, write_problems(tmp_path / "few", 42, 12, seed=2), 1, 4, 32)
    assert done.returncode == 0, done.stdout + done.stderr
    for slots in SLOTS:
        assert f"32 lanes, {slots}: 42 problems, 0 wrong" in done.stdout
    done = run(program, write_problems(tmp_path / "large", 12, 300, seed=3), 2, slots=["memory"])
    assert done.returncode == 0, done.stdout + done.stderr


def build_with_thread_sanitizer(folder: Path, include: Path) -> Path:
    return build(folder, include, "-O1", "-g", "-fsanitize=thread")


def test_no_data_race_between_lanes(tmp_path, sources):
    program = build_with_thread_sanitizer(tmp_path, sources)
    done = run(program, write_problems(tmp_path / "problems", 42, 12, seed=4), 4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ThreadSanitizer" not in done.stderr


LANES = CSRC / "lap_lanes.h"
SYNC = re.compile(r"lanes_\.sync\(\);")


@pytest.mark.parametrize("removed", range(len(SYNC.findall(LANES.read_text()))))
def test_every_barrier_is_needed(tmp_path, sources, removed):
    """Without any one sync() ThreadSanitizer reports a race, so the test above can fail."""
    text = LANES.read_text()
    place = list(SYNC.finditer(text))[removed]
    (sources / LANES.name).write_text(text[: place.start()] + text[place.end() :])
    program = build_with_thread_sanitizer(tmp_path, sources)
    problems = write_problems(tmp_path / "problems", 42, 12, seed=4)
    for slots in SLOTS:
        done = run(program, problems, 4, slots=[slots])
        assert done.returncode != 0
        assert "ThreadSanitizer: data race" in done.stderr

"""The CUDA kernels compiled for several architectures, warnings as errors, and read.

Needs nvcc and no GPU. Dynamic shared memory is chosen by csrc/cuda/assign_plan.cpp for the card, so
that occupancy is that of registers and threads alone: at most.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import ptx
from .occupancy import occupancy

ROOT = Path(__file__).resolve().parents[2]
ARCHS = (75, 80, 86, 89, 90, 100, 120)
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def rows(archs: tuple[int, ...] = ARCHS) -> tuple[list[dict], dict]:
    """Every kernel on every architecture that the toolkit knows, one dict each.

    Returns:
        The rows, and what they were compiled with.

    Raises:
        SystemExit: there is no toolkit, or a file does not compile without warnings.
    """
    build = _setup()
    toolkit, reason = build.find_toolkit(dict(os.environ))
    if toolkit is None:
        raise SystemExit(f"cuda kernels: {reason}")
    known = [major * 10 + minor for major, minor in toolkit.archs]
    nvcc = [str(toolkit.home / "bin/nvcc"), *build.NVCC_FLAGS, "-std=c++17"]
    listed: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
            told = _instructions(nvcc, source, folder)
            for arch in (arch for arch in archs if arch in known):
                listed += [
                    _with_instructions(row, told[row["kernel"]])
                    for row in _compiled(nvcc, source, arch, folder)
                ]
    names = readable(sorted({row["kernel"] for row in listed}))
    for row in listed:
        row["kernel"] = names[row["kernel"]]
    about = {"toolkit": toolkit.release, "flags": build.NVCC_FLAGS}
    return listed, about | {"left_out": sorted(set(archs) - set(known))}


def _compiled(nvcc: list[str], source: Path, arch: int, folder: str) -> list[dict]:
    """The resources of the kernels of one file on one architecture."""
    options = ["-Werror", "all-warnings", "-Xptxas", "-v"]
    options += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-c", str(source)]
    told = _run(
        [*nvcc, *options, "-o", str(Path(folder, "kernels.o"))], f"{source.name}, sm_{arch}"
    )
    return [
        {
            "kernel": entry["name"],
            "file": source.name,
            "arch": arch,
            "registers": int(entry["registers"]),
            "spilled_bytes": int(entry["stores"]) + int(entry["loads"]),
            "stack_bytes": int(entry["stack"]),
            "static_shared_bytes": int((re.search(r"(\d+) bytes smem", entry["rest"]) or "00")[1]),
        }
        for entry in ENTRY.finditer(told)
    ]


def _instructions(nvcc: list[str], source: Path, folder: str) -> dict[str, ptx.Instructions]:
    """What the PTX for 8.0 holds, by kernel."""
    text = Path(folder, "kernels.ptx")
    _run([*nvcc, "-ptx", "-arch=compute_80", str(source), "-o", str(text)], source.name)
    return {name: ptx.read(entry) for name, entry in ptx.entries(text.read_text()).items()}


def _with_instructions(row: dict, told: ptx.Instructions) -> dict:
    full = occupancy(row["arch"], told.threads, row["registers"], row["static_shared_bytes"])
    accesses = {"loads": told.loads, "stores": told.stores, "copies": told.copies}
    return row | {"threads": told.threads, "occupancy": full, "local": told.local} | accesses


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} does not compile:\n{done.stderr}")
    return done.stderr


def _setup():
    spec = importlib.util.spec_from_file_location("detr_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def readable(names: list[str]) -> dict[str, str]:
    """Kernels as `assign<float, WarpTeam<10>>`; as they are where there is no c++filt."""
    try:
        done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in names}
    short = [
        re.sub(r"\(\w+\)", "", line.replace("detr_fast::", "").removeprefix("void "))
        for line in done.stdout.splitlines()
    ]
    return {
        name: line.partition("(")[0].replace(" >", ">")
        for name, line in zip(names, short, strict=True)
    }


def faults(row: dict) -> list[str]:
    """What is not as it should be with a compiled kernel, a phrase each."""
    wrong = [f"spills {row['spilled_bytes']} bytes"] * bool(row["spilled_bytes"])
    return wrong + ["local memory in the PTX"] * bool(row["local"])


def table(listed: list[dict]) -> str:
    """Registers and occupancy by kernel and architecture, as Markdown."""
    archs = sorted({row["arch"] for row in listed})
    cells = {
        (row["kernel"], row["arch"]): f"{row['registers']}, {row['occupancy']:.0%}"
        for row in listed
    }
    lines = [
        "| registers of a thread, occupancy at most | threads | "
        + " | ".join(f"sm_{arch}" for arch in archs)
        + " |",
        "| --- | --: |" + " --: |" * len(archs),
    ]
    threads = {row["kernel"]: row["threads"] for row in listed}
    for kernel in sorted(threads):
        told = " | ".join(cells[kernel, arch] for arch in archs)
        lines.append(f"| `{kernel}` | {threads[kernel]} | {told} |")
    return "\n".join(lines)

"""Compiles the CUDA kernels for several architectures, warnings as errors; tells what they take.

    python benchmarks/kernel_resources.py [--archs 75 80 86 89 90 100 120] [--output FOLDER]

Needs nvcc and no GPU. Prints registers, bytes spilled to local memory and static shared memory of
each kernel, and writes them to kernel_resources.json and .md in FOLDER, by default
benchmarks/results/cuda-<toolkit>-compiled. Fails if a file does not compile without a warning or a
kernel spills. Dynamic shared memory is chosen by csrc/cuda/assign_plan.cpp for the card.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHS = (75, 80, 86, 89, 90, 100, 120)
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def load_setup():
    spec = importlib.util.spec_from_file_location("detr_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compile_for(build, toolkit, source: Path, arch: int, folder: str) -> list[dict]:
    """The resources of the kernels of one file on one architecture."""
    command = [
        str(toolkit.home / "bin/nvcc"),
        *build.NVCC_FLAGS,
        *("-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v"),
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        *("-c", str(source), "-o", str(Path(folder, "kernels.o"))),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{source.name} does not compile for sm_{arch}:\n{done.stderr}")
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
        for entry in ENTRY.finditer(done.stderr)
    ]


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


def table(rows: list[dict], archs: list[int]) -> str:
    """Registers by kernel and architecture, as Markdown."""
    kernels = sorted({row["kernel"] for row in rows})
    registers = {(row["kernel"], row["arch"]): row["registers"] for row in rows}
    lines = [
        "| registers of | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "| --- |" + " --: |" * len(archs),
    ]
    for kernel in kernels:
        cells = (str(registers[kernel, arch]) for arch in archs)
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archs", type=int, nargs="+", default=list(ARCHS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    build = load_setup()
    toolkit, reason = build.find_toolkit(dict(os.environ))
    if toolkit is None:
        raise SystemExit(f"kernel_resources: {reason}")
    known = [major * 10 + minor for major, minor in toolkit.archs]
    archs = [arch for arch in arguments.archs if arch in known]
    if archs != arguments.archs:
        left_out = sorted(set(arguments.archs) - set(archs))
        print(f"CUDA {toolkit.release} does not know {left_out}: left out")

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
            for arch in archs:
                rows += compile_for(build, toolkit, source, arch, folder)
    names = readable(sorted({row["kernel"] for row in rows}))
    for row in rows:
        row["kernel"] = names[row["kernel"]]
    spilling = [row for row in rows if row["spilled_bytes"]]
    most_shared = max(row["static_shared_bytes"] for row in rows)
    said = (
        f"{len(names)} kernels for {len(archs)} architectures with CUDA {toolkit.release}, without "
        f"warnings; {len(spilling)} of {len(rows)} spill registers; static shared memory at most "
        f"{most_shared} bytes."
    )
    text = f"{said}\n\n{table(rows, archs)}\n"
    print(text)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    output = arguments.output or ROOT / f"benchmarks/results/cuda-{toolkit.release}-compiled"
    output.mkdir(parents=True, exist_ok=True)
    record = {"toolkit": toolkit.release, "commit": commit, "flags": build.NVCC_FLAGS}
    (output / "kernel_resources.json").write_text(json.dumps({**record, "kernels": rows}, indent=1))
    (output / "kernel_resources.md").write_text(text)
    if spilling:
        raise SystemExit(f"kernels that spill: {sorted({row['kernel'] for row in spilling})}")


if __name__ == "__main__":
    main()

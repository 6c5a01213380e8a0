"""What can be said of the kernels without a GPU.

    python benchmarks/paper cuda     # registers, spills, occupancy of the CUDA kernels; needs nvcc
    python benchmarks/paper triton   # the same of the Triton kernels, and their PTX read
    python benchmarks/paper floors   # bytes, operations and exponentials over published peaks
    python benchmarks/paper all

Writes a JSON and a table of each to benchmarks/results/cuda-<release>-compiled, or to --output. The
exit status is 1 where something does not hold that should: a spill, local memory, a kernel without
matrix instructions or 16-byte loads.
"""

import argparse
import json
from pathlib import Path

import torch
from gpu.record import ROOT, record

SUBCOMMANDS = ("cuda", "triton", "floors")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subcommand", choices=[*SUBCOMMANDS, "all"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    folder = options.output
    if folder is None:
        folder = ROOT / f"benchmarks/results/cuda-{torch.version.cuda}-compiled"
    folder.mkdir(parents=True, exist_ok=True)
    asked = SUBCOMMANDS if options.subcommand == "all" else (options.subcommand,)
    # Before anything runs: it takes minutes, in which the checkout may change.
    told = record()
    about = {key: told[key] for key in ("command", "commit", "uncommitted", "packages")}
    run = {"cuda": _cuda, "triton": _triton, "floors": _floors}
    return max(run[name](folder, about) for name in asked)


def _cuda(folder: Path, about: dict) -> int:
    from . import cuda_kernels

    rows, compiler = cuda_kernels.rows()
    faults = [row for row in rows if cuda_kernels.faults(row)]
    archs = sorted({row["arch"] for row in rows})
    kernels = {row["kernel"] for row in rows}
    said = (
        f"{len(kernels)} kernels for {len(archs)} architectures with CUDA {compiler['toolkit']}, "
        f"without warnings; {len(faults)} of {len(rows)} spill registers or use local memory; "
        f"static shared memory at most {max(row['static_shared_bytes'] for row in rows)} bytes. "
        "Dynamic shared memory is chosen for the card at the launch: occupancy is that of "
        "registers and threads."
    )
    _write(folder, "cuda_kernels", about | compiler, rows, said, cuda_kernels.table(rows))
    return int(bool(faults))


def _triton(folder: Path, about: dict) -> int:
    from . import triton_kernels

    rows: list[dict] = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rows += triton_kernels.rows([80, 90], [0.0, 0.1], dtype)
    faults = [row for row in rows if row["faults"]]
    said = (
        f"{len(rows)} compiled kernels of Triton {triton_kernels.triton.__version__}, of which "
        f"{len(rows) - len(faults)} spill nothing, use no local memory, load 16 bytes at a time "
        "and, where there are products, have matrix instructions."
    )
    _write(folder, "triton_kernels", about, rows, said, triton_kernels.table(rows))
    return int(bool(faults))


def _floors(folder: Path, about: dict) -> int:
    from . import floors

    tasks = list(floors.tasks())
    listed = [
        {
            "what": task.what,
            "bytes": task.bytes,
            "flops": task.work.flops,
            "exponentials": task.exponentials,
            "floor_ms": {gpu.name: 1000 * task.seconds(gpu) for gpu in floors.GPUS},
            "target_ms": floors.target_ms(task),
        }
        for task in tasks
    ]
    said = (
        "Each operation of a model takes the longer of its bytes and its operations, one after "
        "another; launches, waits and partly filled waves of blocks come on top. Elementwise work "
        "counts as fused. Nothing here was measured."
    )
    text = f"{floors.hardware_table()}\n\n{floors.table(tasks)}"
    _write(folder, "floors", about, listed, said, text)
    return 0


def _write(folder: Path, name: str, about: dict, rows: list[dict], said: str, table: str) -> None:
    head = json.dumps(about, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    (folder / f"{name}.json").write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    text = f"{said}\n\n{table}\n"
    (folder / f"{name}.md").write_text(text)
    print(text, flush=True)

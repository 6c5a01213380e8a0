"""The Triton kernels compiled for GPUs that need not be there, and read.

Registers and spilled bytes are those that ptxas counts; shared memory is Triton's own figure.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from detr_fast.kernels import attention as launches_of
from detr_fast.kernels.attention_blocks import SHARED_MEMORY, TABLE, entry_of

from . import ptx
from .occupancy import occupancy

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}
DTYPES = {16: torch.float16, 32: torch.float32}
# Bytes of the widest access that a thread can make.
WIDE = 16
# Queries and a grid of keys: the encoder's self-attention and the decoder's cross-attention.
_SIZES = {"many": (1400, (28, 50)), "few": (100, (28, 50))}


class Cost(NamedTuple):
    """What one compiled kernel needs, and what its PTX holds."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    threads: int
    instructions: ptx.Instructions


def problem(dtype: torch.dtype, queries: int, grid: tuple[int, int], head_size: int, device="meta"):
    """Arguments of the operation for two images with 8 heads, in the layout of a projection."""
    keys = grid[0] * grid[1]
    query, key, value = (
        torch.empty(2, length, 8, head_size, dtype=dtype, device=device).transpose(1, 2)
        for length in (queries, keys, keys)
    )
    extents = torch.empty(2, 2, dtype=torch.int64, device=device)
    return query, key, value, extents, grid[1]


def entry_launches(
    key: tuple,
    dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    size: tuple[int, tuple[int, int]] | None = None,
) -> Iterator[launches_of.Launch]:
    """Every launch of forward and backward with the entry `key` of the table.

    `size` is the number of queries and the grid of keys, usual ones by default.
    """
    _, bits, amount, head_size = key
    arguments = problem(dtype or DTYPES[bits], *(size or _SIZES[amount]), head_size)
    seed = torch.empty(1, dtype=torch.int64, device="meta") if dropout else None
    arguments = (*arguments, dropout, seed)
    entry = entry_of(key, dropout > 0)
    launches, results = launches_of.forward_launches(entry, *arguments)
    yield from launches
    launches, _ = launches_of.backward_launches(entry, results[0], *arguments, *results)
    yield from launches


def specialization(launch: launches_of.Launch) -> tuple[dict, dict, dict]:
    """What Triton compiles a launch for: types, constants and alignments of its arguments."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if aligned and not parameter.do_not_specialize:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: launches_of.Launch, architecture: int) -> Cost:
    """Compiles what `launch` would run, for an architecture that need not be there."""
    compiled = triton.compile(
        ASTSource(launch.kernel, *specialization(launch)),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    text = compiled.asm["ptx"]
    registers, spilled = _resources(text)
    (entry,) = ptx.entries(text).values()
    return Cost(
        launch.kernel.__name__,
        registers,
        spilled,
        compiled.metadata.shared,
        32 * launch.warps,
        ptx.read(entry),
    )


def _resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills and loads again."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE).group(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", source]
        done = subprocess.run(
            [*command, "-o", source.with_suffix(".cubin")],
            check=True,
            capture_output=True,
            text=True,
        )
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr).group(1)
    return int(registers), sum(map(int, spilled.groups()))


def rows(architectures: list[int], dropouts: list[float], dtype: torch.dtype) -> Iterator[dict]:
    """Every kernel of every entry of the table with elements of `dtype`, one dict each."""
    for key in TABLE:
        architecture, bits, queries, head_size = key
        if architecture not in architectures or bits != 8 * dtype.itemsize:
            continue
        for dropout in dropouts:
            for launch in entry_launches(key, dtype=dtype, dropout=dropout):
                cost = compile_launch(launch, architecture)
                row = {
                    "arch": architecture,
                    "dtype": str(dtype).removeprefix("torch."),
                    "queries": queries,
                    "head_size": head_size,
                    "dropout": dropout,
                    **cost._asdict(),
                    "occupancy": occupancy(
                        architecture, cost.threads, cost.registers, cost.shared_bytes
                    ),
                }
                told = row.pop("instructions")._asdict() | {"threads": cost.threads}
                row |= told | {"faults": faults(cost, architecture)}
                yield row


def faults(cost: Cost, architecture: int) -> list[str]:
    """What is not as it should be with a compiled kernel, a phrase each."""
    wrong = []
    if cost.spilled_bytes:
        wrong.append(f"spills {cost.spilled_bytes} bytes")
    if cost.shared_bytes > SHARED_MEMORY[architecture]:
        wrong.append(f"{cost.shared_bytes} bytes of shared memory do not fit")
    if cost.instructions.local:
        wrong.append("local memory in the PTX")
    if not cost.instructions.matrix and cost.kernel != "join":
        wrong.append("no matrix instruction")
    if cost.instructions.widest() < WIDE:
        wrong.append(f"no load of {WIDE} bytes")
    return wrong


def table(listed: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| sm | type | queries | D | dropout | kernel | registers | spilled | shared | occupancy "
        "| device to shared, registers (bytes x instructions) | matrix | does not hold |",
        "| --: | --- | --- | --: | --: | --- | --: | --: | --: | --: | --- | --- | --- |",
    ]
    for row in listed:
        wide = [f"cp.async {counted(row['copies'])}"] * bool(row["copies"])
        wide += [f"ld {counted(row['loads'])}"] * bool(row["loads"])
        cells = [
            *(row["arch"], row["dtype"], row["queries"], row["head_size"], row["dropout"]),
            *(row["kernel"], row["registers"], row["spilled_bytes"], row["shared_bytes"]),
            *(f"{row['occupancy']:.0%}", ", ".join(wide)),
            ", ".join(f"{name} x {count}" for name, count in row["matrix"].items()),
            "; ".join(row["faults"]),
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def counted(accesses: dict[int, int]) -> str:
    """Widths and how often, widest first."""
    return " ".join(f"{width} x {count}" for width, count in sorted(accesses.items())[::-1])

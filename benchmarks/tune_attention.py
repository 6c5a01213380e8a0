"""The block sizes of attention: what each entry of the table costs, and which are fastest.

    python benchmarks/tune_attention.py                      # compile every entry, without a GPU
    python benchmarks/tune_attention.py --measure 3350 3350  # on a GPU: candidates at that L and K

Compiling reports the registers of a thread and the bytes it spills, as ptxas counts them, and the
shared memory of a program. Measuring runs candidates around the entry of this GPU and prints them,
fastest first, with their share of 4 L K D operations a head; the table in
`detr_fast/kernels/attention_blocks.py` is edited by hand.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from detr_fast.kernels import attention as launches_of
from detr_fast.kernels.attention_blocks import SHARED_MEMORY, TABLE, Blocks, Entry, table_key

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}
_DTYPES = {16: torch.float16, 32: torch.float32}
# Queries and a grid of keys: the encoder's self-attention and the decoder's cross-attention.
_SIZES = {"many": (1400, (28, 50)), "few": (100, (28, 50))}


class Cost(NamedTuple):
    """What one compiled kernel needs."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


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
    arguments = problem(dtype or _DTYPES[bits], *(size or _SIZES[amount]), head_size)
    seed = torch.empty(1, dtype=torch.int64, device="meta") if dropout else None
    arguments = (*arguments, dropout, seed)
    launches, results = launches_of.forward_launches(TABLE[key], *arguments)
    yield from launches
    launches, _ = launches_of.backward_launches(TABLE[key], results[0], *arguments, *results)
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
    return Cost(launch.kernel.__name__, *_resources(compiled.asm["ptx"]), compiled.metadata.shared)


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


def report(keys: list[tuple], dropout: float) -> int:
    """Prints the cost of each entry; returns how many do not fit or spill."""
    wrong = 0
    for key in keys:
        architecture = key[0]
        for launch in entry_launches(key, dropout=dropout):
            cost = compile_launch(launch, architecture)
            fits = cost.shared_bytes <= SHARED_MEMORY[architecture]
            wrong += cost.spilled_bytes > 0 or not fits
            note = "" if fits else "  too much shared memory"
            note += "  SPILLS" if cost.spilled_bytes else ""
            print(
                f"sm_{architecture} {key[1]}-bit {key[2]:<4} D={key[3]:<4} {cost.kernel:<15} "
                f"{cost.registers:>4} registers {cost.spilled_bytes:>6} spilled "
                f"{cost.shared_bytes:>7} shared{note}",
                flush=True,
            )
    return wrong


def measure(queries: int, keys: int, head_size: int, dtype: torch.dtype, images: int) -> None:
    """Times candidates for each kernel on this GPU and prints the ten fastest."""
    torch.manual_seed(0)
    grid = (keys, 1)
    query, key, value, _, columns = problem(dtype, queries, grid, head_size, "cuda")
    query, key, value = (
        torch.randn_like(x[:1].expand(images, -1, -1, -1)) for x in (query, key, value)
    )
    arguments = (query, key, value, None, columns, 0.0, None)
    major, minor = torch.cuda.get_device_capability()
    entry = TABLE[table_key(10 * major + minor, query.element_size(), queries, head_size)]
    _, results = launches_of.forward_launches(entry, *arguments)
    sizes, warps, stages = (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
    products = {"forward": 2, "query_gradient": 3, "key_gradient": 4}
    for field, count in products.items():
        timed = []
        for blocks in itertools.starmap(Blocks, itertools.product(sizes, sizes, warps, stages)):
            candidate = Entry(**{**entry._asdict(), field: blocks})
            if field == "forward":
                launches, _ = launches_of.forward_launches(candidate, *arguments)
            else:
                launches, _ = launches_of.backward_launches(
                    candidate, results[0], *arguments, *results
                )
                launches = [launch for launch in launches if launch.kernel.__name__ == field]
            try:
                milliseconds = triton.testing.do_bench(
                    lambda launches=launches: [launch.run() for launch in launches],
                    return_mode="median",
                )
            except (triton.OutOfResources, triton.CompilationError) as error:
                print(f"{field} {blocks}: {type(error).__name__}", file=sys.stderr)
                continue
            timed.append((milliseconds, blocks))
        operations = 2 * count * images * 8 * queries * keys * head_size
        for milliseconds, blocks in sorted(timed)[:10]:
            marked = " (in the table)" if blocks == getattr(entry, field) else ""
            speed = operations / milliseconds / 1e9
            print(f"{field:<15} {milliseconds:8.4f} ms {speed:6.0f} TFLOP/s  {blocks}{marked}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--head_size", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--measure", type=int, nargs=2, metavar=("L", "K"))
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    if options.measure:
        for bits, head_size in itertools.product(options.bits, options.head_size):
            print(f"{bits}-bit, D={head_size}, {options.images} images, 8 heads")
            measure(*options.measure, head_size, _DTYPES[bits], options.images)
        return 0
    keys = [
        key
        for key in TABLE
        if key[0] in options.arch and key[1] in options.bits and key[3] in options.head_size
    ]
    return int(report(keys, options.dropout) > 0)


if __name__ == "__main__":
    sys.exit(main())

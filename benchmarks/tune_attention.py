"""The block sizes of attention: which candidates are fastest on this GPU.

    python benchmarks/tune_attention.py 3350 3350   # L and K

Runs candidates around the entry of this GPU and prints them, fastest first, with their share of
4 L K D operations a head; the table in `detr_fast/kernels/attention_blocks.py` is edited by hand.
What an entry costs in registers, spills and shared memory is told by `python benchmarks/paper
triton`, without a GPU.
"""

import argparse
import itertools
import sys

import torch
import triton
from paper.triton_kernels import DTYPES, problem

from detr_fast.kernels import attention as launches_of
from detr_fast.kernels.attention_blocks import TABLE, Blocks, Entry, table_key


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("queries", type=int)
    parser.add_argument("keys", type=int)
    parser.add_argument("--head_size", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    for bits, head_size in itertools.product(options.bits, options.head_size):
        print(f"{bits}-bit, D={head_size}, {options.images} images, 8 heads")
        measure(options.queries, options.keys, head_size, DTYPES[bits], options.images)


if __name__ == "__main__":
    main()

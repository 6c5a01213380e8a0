"""The mask head against that of transformers: time and peak memory, in one run.

    OMP_NUM_THREADS=2 python benchmarks/bench_mask_head.py [--json FILE]

One image of 800 x 1066 and 100 queries, random weights carried over, float32, no gradients. The
masks are compared before anything is timed. The two heads are timed in turn, so that whatever else
the machine does meets both. Peak memory is what a fresh process needs beyond its inputs and
weights, by the kernel's own count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from detr_fast._environment import conditions, environment
from detr_fast.inference.benchmark.memory import with_peak_memory

os.environ["HF_HUB_OFFLINE"] = "1"

WIDTH, HEADS, QUERIES, KEPT = 256, 8, 100, 10
PYRAMID = ((1024, 50, 67), (512, 100, 134), (256, 200, 267))
GRID = (25, 34)
# Float32 sums of a few thousand terms in another order, at logits of order one.
TOLERANCE = 1e-3


def inputs():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, WIDTH, *GRID, generator=generator)
    attention = torch.rand(1, QUERIES, HEADS, *GRID, generator=generator)
    attention /= attention.flatten(2).sum(-1)[..., None, None, None]
    pyramid = [torch.randn(1, *level, generator=generator) for level in PYRAMID]
    return features, attention, pyramid


def detr_fast(queries=QUERIES):
    head = our_head()
    features, attention, pyramid = inputs()
    return lambda: head(features, [attention[0, :queries]], pyramid)[0]


def transformers():
    """It knows no kept queries: its model makes masks of all of them."""
    from transformers.models.detr.modeling_detr import DetrMaskHeadSmallConv

    head = DetrMaskHeadSmallConv(WIDTH + HEADS, [c for c, *_ in PYRAMID], WIDTH).eval()
    # Its parameters stand in the order of the layers, ours in that of the checkpoint.
    ours = dict(our_head().named_parameters())
    names = [f"{kind}{i}" for i in (1, 2) for kind in ("lay", "gn")]
    names += [name for i in (1, 2, 3) for name in (f"adapter{i}", f"lay{i + 2}", f"gn{i + 2}")]
    carried = [ours[f"{n}.{kind}"] for n in [*names, "out_lay"] for kind in ("weight", "bias")]
    with torch.no_grad():
        for theirs, value in zip(head.parameters(), carried, strict=True):
            theirs.copy_(value)
    features, attention, pyramid = inputs()
    return lambda: head(features, attention, pyramid).view(QUERIES, *PYRAMID[-1][1:])


def our_head():
    from detr_fast.models.segmentation import MaskHead

    torch.manual_seed(0)
    return MaskHead(WIDTH, HEADS, [channels for channels, *_ in PYRAMID]).eval()


CASES = {
    "detr_fast": detr_fast,
    "detr_fast_kept": lambda: detr_fast(KEPT),
    "transformers": transformers,
}


def peak_memory(case: str) -> float:
    """MiB that one call needs beyond what was there before it, in a process of its own."""
    arguments = [sys.executable, __file__, "--peak", case]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return float(done.stdout)


@torch.inference_mode()
def print_peak(case: str) -> None:
    _, peak = with_peak_memory(CASES[case](), torch.device("cpu"))
    print(peak / 2**20)


@torch.inference_mode()
def compare(rounds: int) -> dict:
    calls = {name: make() for name, make in CASES.items()}
    ours, kept, theirs = (call() for call in calls.values())
    error = max((ours - theirs).abs().max().item(), (kept - theirs[:KEPT]).abs().max().item())
    if not error < TOLERANCE:
        raise SystemExit(f"the masks differ by {error}: nothing was timed")
    del ours, kept, theirs
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {
        "largest_difference": error,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "peak_mib": {name: peak_memory(name) for name in CASES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", metavar="CASE", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.peak:
        print_peak(args.peak)
        return
    results = {
        "command": "OMP_NUM_THREADS=2 python benchmarks/bench_mask_head.py --json FILE",
        "cpu": environment()["cpu"],
        "commit": conditions()["commit"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": args.rounds,
        **compare(args.rounds),
    }
    for name, label in (("detr_fast", f"{QUERIES} queries"), ("detr_fast_kept", f"{KEPT} kept")):
        ours, theirs = (results["seconds"][case] for case in (name, "transformers"))
        memory, their_memory = (results["peak_mib"][case] for case in (name, "transformers"))
        print(
            f"{label:>12}: {ours:.2f} s against {theirs:.2f} s ({theirs / ours:.1f} times as "
            f"fast), peak memory {memory:.0f} MiB against {their_memory:.0f} MiB"
        )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()

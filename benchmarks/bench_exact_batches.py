"""What exact batches cost: the same batch of different shapes in both modes, in turn.

    OMP_NUM_THREADS=2 python benchmarks/bench_exact_batches.py --json FILE

Four images at short side 400, on a model with random weights and on its engines. What to expect:
exact batches write zeros into the padding, which is at most 2 % of the time; the engine on a CPU
leaves the padding out instead, 35 % of the pixels here, and is faster.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch

from detr_fast import Engine, build_model
from detr_fast._environment import environment
from detr_fast.inference.kept_memory import keep_freed_memory

SHAPES = ((400, 533), (533, 400), (400, 600), (400, 400))
WARM_UPS = 2


@torch.inference_mode()
def seconds(network, images: list[torch.Tensor], rounds: int) -> dict[str, list[float]]:
    """Of each round, by the mode."""
    found = {"original": [], "exact": []}
    for _ in range(WARM_UPS + rounds):
        for mode, taken in found.items():
            network.exact_batches = mode == "exact"
            start = time.perf_counter()
            # Reading the answers waits for a GPU.
            network(images)["pred_boxes"].cpu()
            taken.append(time.perf_counter() - start)
    return {mode: taken[WARM_UPS:] for mode, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="detr_resnet50", help="name of the zoo, random weights")
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"], help="of the engines")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    if args.device == "cpu":
        keep_freed_memory()  # as `detr-fast eval` does
    torch.manual_seed(0)
    model = build_model(args.model).eval().to(args.device)
    images = [torch.randn(3, *shape, device=args.device) for shape in SHAPES]
    networks = {"model": model} | {f"engine {p}": Engine(model, p) for p in args.precisions}
    results = {
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "cpu": environment()["cpu"],
        "gpu": torch.cuda.get_device_name() if args.device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "seconds": {},
        "ratio": {},
    }
    for name, network in networks.items():
        taken = seconds(network, images, args.rounds)
        paired = zip(taken["exact"], taken["original"], strict=True)
        ratio = statistics.median(exact / original for exact, original in paired)
        results["seconds"][name], results["ratio"][name] = taken, ratio
        medians = {mode: 1e3 * statistics.median(each) for mode, each in taken.items()}
        print(
            f"{name}: exact {medians['exact']:.0f} ms, as the original {medians['original']:.0f} "
            f"ms; median of {args.rounds} paired ratios {ratio:.3f}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

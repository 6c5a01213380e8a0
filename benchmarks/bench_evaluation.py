"""Evaluation of images of mixed sizes in batches, with and without buckets.

    OMP_NUM_THREADS=2 python benchmarks/bench_evaluation.py --json FILE
    OMP_NUM_THREADS=2 python benchmarks/bench_evaluation.py --padding original --json FILE
    OMP_NUM_THREADS=2 python benchmarks/bench_evaluation.py --precision none --json FILE

A data set in COCO's layout with the sizes of the first 100 images of val2017 (generated pictures,
stored as JPEG) is evaluated as `detr-fast eval --exact_batches --batch_size 16 --precision bf16`
does it: decoded, resized to a short side of 800 and a long side of at most 1333, detected in by the
engine of a DETR with random weights, or without a precision by the model itself, and compared with
annotations. Once in the order of the files, and once in buckets of like shapes. Before anything is
timed, the logits and boxes of every query of every image have to agree; on a CPU in bf16 within
what the rounding of another canvas moves. `--padding original` leaves `--exact_batches` out: there
an image's answers depend on its batch, and the largest differences are printed.

What to expect, counted in the sizes alone (`--count` prints it): the 100 images have 89.2 million
pixels. In the order of the files their seven batches have 151.0 million, of which 59.1 % are image;
in buckets 94.5 million, of which 94.4 % are. Through the backbone, where nearly all of the time
goes, that is 1.60 times the throughput. Of the pairs of tokens in attention 34.5 % and 89.2 % are
image. In exact batches the engine on a CPU leaves out padding by itself, in the order of the files
too, and gains nothing; nor do decoding and resizing anywhere.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from detr_fast import build_model
from detr_fast._environment import environment
from detr_fast.data.buckets import size_buckets
from detr_fast.data.build import build_loader
from detr_fast.data.coco import CocoDetection
from detr_fast.data.label_map import COCO_LABEL_MAP
from detr_fast.data.transforms import resized_size, val_transform
from detr_fast.evaluation.coco import CocoEvaluator
from detr_fast.evaluation.evaluate import evaluate
from detr_fast.inference.benchmark.workloads import val2017_sizes
from detr_fast.inference.engine import Engine
from detr_fast.inference.kept_memory import keep_freed_memory

STRIDE = 32
LONG_TO_SHORT = 1333 / 800
# Largest difference of a logit and of a normalised box coordinate of one image in two batches. In
# bf16 another canvas blocks sums otherwise, and each rounding of the network may fall otherwise.
TOLERANCES = {
    "none": (1e-4, 1e-5),
    "fp32": (1e-4, 1e-5),
    "bf16": (0.1, 0.005),
    "fp16": (0.02, 0.001),
}


def counted(
    sizes: list[tuple[int, int]], resized: list[tuple[int, int]], batch_size: int
) -> dict[str, dict[str, float]]:
    """Shares of image in the pixels and in the pairs of tokens of all batches."""
    places = range(len(sizes))
    ways = {
        "files": [places[i : i + batch_size] for i in places[::batch_size]],
        "buckets": size_buckets(sizes, batch_size),
    }
    figures = {}
    for way, batches in ways.items():
        pixels, pairs = np.zeros(2), np.zeros(2)  # of images, and with the padding
        for batch in batches:
            own = np.array([resized[i] for i in batch])
            pixels += own.prod(1).sum(), len(batch) * own.max(0).prod()
            tokens = -(-own // STRIDE)
            pairs += (tokens.prod(1) ** 2).sum(), len(batch) * tokens.max(0).prod() ** 2
        figures[way] = {
            "batches": len(batches),
            "megapixels": pixels[1] / 1e6,
            "valid_pixels": pixels[0] / pixels[1],
            "valid_token_pairs": pairs[0] / pairs[1],
        }
    return figures


def write_data(root: Path, sizes: list[tuple[int, int]]) -> tuple[Path, Path]:
    """A folder of pictures and their annotations, one box in each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes, start=1):
        name = f"{number:012d}.jpg"
        coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(root / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        box = {"bbox": [width / 4, height / 4, width / 2, height / 2], "category_id": 1}
        annotations.append({"id": number, "image_id": number, **box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    path = root / "annotations.json"
    path.write_text(json.dumps(content))
    return root, path


@torch.inference_mode()
def answers(model: nn.Module, loader, device) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Logits and boxes of every image, by its id."""
    found = {}
    for batch, targets in loader:
        outputs = model(batch.to(device))
        own = zip(targets, outputs["pred_logits"].cpu(), outputs["pred_boxes"].cpu(), strict=True)
        found |= {int(target["image_id"]): (logits, boxes) for target, logits, boxes in own}
    return found


def differences(one: dict, other: dict) -> dict[str, float]:
    """The largest between two ways; ends the program where they do not have the same images."""
    if one.keys() != other.keys():
        raise SystemExit(f"{len(one)} and {len(other)} images were answered: nothing was timed")
    return {
        name: max((one[i][place] - other[i][place]).abs().max().item() for i in one)
        for place, name in enumerate(("logits", "boxes"))
    }


def require_equal(largest: dict[str, float], precision: str) -> None:
    """Ends the program where differences are too large."""
    for (name, difference), limit in zip(largest.items(), TOLERANCES[precision], strict=True):
        if not difference <= limit:
            raise SystemExit(
                f"{name} with and without buckets differ by {difference:.1e}, more than "
                f"{limit:.0e}: nothing was timed"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="detr_resnet50", help="name of the zoo, random weights")
    parser.add_argument(
        "--precision",
        choices=list(TOLERANCES),
        default="bf16",
        help="of the engine; none: the model without one",
    )
    parser.add_argument(
        "--padding",
        choices=("exact", "original"),
        default="exact",
        help="whether answers depend on it",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--short_side", type=int, default=800)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", action="store_true", help="print shares of padding, run nothing")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    sizes = val2017_sizes()[: args.images]
    longest = round(args.short_side * LONG_TO_SHORT)
    resized = [resized_size(*size, args.short_side, longest) for size in sizes]
    figures = counted(sizes, resized, args.batch_size)
    for way, figure in figures.items():
        print(
            f"{way:>8}: {figure['batches']} batches of {figure['megapixels']:.1f} megapixels, "
            f"{figure['valid_pixels']:.1%} image; of token pairs {figure['valid_token_pairs']:.1%}"
        )
    expected = figures["files"]["megapixels"] / figures["buckets"]["megapixels"]
    print(f"by pixels alone, buckets are {expected:.2f} times as fast")
    if args.count:
        return

    if args.device == "cpu":
        keep_freed_memory()  # as `detr-fast eval` does
    torch.manual_seed(0)
    exact = args.padding == "exact"
    model = build_model(args.model, exact_batches=exact).eval().to(args.device)
    if args.precision != "none":
        model = Engine(model, args.precision, short_side=args.short_side)
    seconds: dict[str, list[float]] = {"files": [], "buckets": []}
    with tempfile.TemporaryDirectory() as folder:
        transform = val_transform(args.short_side, longest)
        dataset = CocoDetection(*write_data(Path(folder), sizes), transform, COCO_LABEL_MAP)
        loaders = {
            way: build_loader(
                dataset, args.batch_size, num_workers=args.num_workers, buckets=way == "buckets"
            )
            for way in seconds
        }
        largest = differences(*(answers(model, loader, args.device) for loader in loaders.values()))
        if exact:
            require_equal(largest, args.precision)
        for _ in range(args.rounds):
            for way, loader in loaders.items():
                evaluator = CocoEvaluator(dataset.ground_truth(), dataset.label_map)
                start = time.perf_counter()
                evaluate(model, loader, evaluator, device=args.device)
                seconds[way].append(time.perf_counter() - start)
    throughput = {way: args.images / statistics.median(each) for way, each in seconds.items()}
    results = {
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "cpu": environment()["cpu"],
        "gpu": torch.cuda.get_device_name() if args.device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "counted": figures,
        "largest_difference": largest,
        "seconds": seconds,
        "images_per_second": throughput,
        "ratio": throughput["buckets"] / throughput["files"],
    }
    print(
        f"answers differ by {largest['logits']:.1e} (logits) and {largest['boxes']:.1e} (boxes) at "
        "most"
    )
    for way, each in seconds.items():
        print(
            f"{way:>8}: {throughput[way]:.2f} images/s, median of {args.rounds} "
            f"({min(each):.2f} to {max(each):.2f} s)"
        )
    print(f"buckets: {results['ratio']:.2f} times the throughput")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""`detr-fast bench`: how fast the detection models are here, stage by stage."""

import argparse
import sys
from collections.abc import Callable


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="time the detection models",
        description="Times the plain float32 model and this package's engine in turn, and with "
        "--compile torch.compile: the zoo's protocol (batch size 1, the first 100 images of "
        "val2017, or without --coco_path noise of such images' sizes) and batches of 800 x 1066. "
        "Prints medians and quartiles of the model, of its stages and of the whole way from image "
        "to boxes, the share of the roofline that is measured in the same run, and peak memory, "
        "beside what the paper and others published. Answers are compared with the plain model's "
        "first; what is wrong is not timed, and the exit code is 1. The same beside Hugging Face "
        "transformers and OpenVINO: benchmarks/bench_inference.py in a checkout.",
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the benchmark, which benchmarks/bench_inference.py has too."""
    parser.add_argument(
        "--models", nargs="+", default=["detr_resnet50"], metavar="NAME", help="names of the zoo"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        metavar="PRECISION",
        help="fp32, bf16, fp16; by default those that can win on the device",
    )
    parser.add_argument(
        "--compile",
        dest="compile_mode",
        default="none",
        metavar="MODE",
        help="also time torch.compile in this mode: default, reduce-overhead, max-autotune; "
        "compiling takes minutes and is not timed",
    )
    parser.add_argument(
        "--weights",
        default="none",
        help="none for random ones, zoo for the published ones; the time does not depend on them",
    )
    parser.add_argument(
        "--images", type=int, default=100, help="images of the zoo's protocol; 0 leaves it out"
    )
    parser.add_argument("--coco_path", help="folder in COCO's layout, for its val2017 images")
    parser.add_argument(
        "--batch_sizes",
        nargs="*",
        type=int,
        default=[1],
        metavar="N",
        help="batches of one size; none leaves them out",
    )
    parser.add_argument("--rounds", type=int, default=10, help="times that each of them is timed")
    parser.add_argument("--short_side", type=int, default=800, help="of the resized images")
    parser.add_argument(
        "--keep_memory",
        action="store_true",
        help="let the process keep freed memory, as eval, predict and verify do on a CPU; torch's "
        "models gain from it, the engine keeps its own anyway",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write inference.json, inference.md and a plot there"
    )


def run(args: argparse.Namespace, peers: Callable | None = None) -> int:
    """Runs the benchmark.

    Args:
        args: of `add_options`.
        peers: as of `run_benchmark`.
    """
    from ..inference.benchmark.report import render, write
    from ..inference.benchmark.run import BenchmarkRequest, run_benchmark
    from ..training.assembly import open_device

    request = BenchmarkRequest(
        models=tuple(args.models),
        precisions=None if args.precisions is None else tuple(args.precisions),
        compile_mode=args.compile_mode,
        weights=args.weights,
        images=args.images,
        coco_path=args.coco_path,
        batch_sizes=tuple(args.batch_sizes),
        rounds=args.rounds,
        short_side=args.short_side,
        keep_memory=args.keep_memory,
    )
    record = run_benchmark(request, open_device(args.device), peers, _tell)
    print(render(record))
    if args.output is not None:
        print(f"\nwritten to {', '.join(map(str, write(record, args.output)))}")
    return int(any(model["refused"] for model in record["models"]))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""`detr-fast verify`: whether the engine in some precision gives what the model gives."""

import argparse

# Pictures that no training has seen.
_SEED = 1000


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="compare the engine in 16 bits or float32 with the model",
        description="Runs the plain float32 model and the engine on the same images, and prints "
        "the largest differences and in how many images both find the same objects. Ends with exit "
        "code 1 where a precision does not hold. Without images it takes generated shapes.",
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="image file or folder")
    parser.add_argument(
        "--resume", "--weights", dest="weights", help="path, URL or zoo name of the weights"
    )
    parser.add_argument(
        "--model",
        help="name of the zoo: its own weights, or with --weights the model that they are of",
    )
    parser.add_argument(
        "--precision", nargs="+", default=["fp32", "bf16"], help="fp32, bf16, fp16, or several"
    )
    parser.add_argument("--threshold", type=float, default=0.7, help="least score of an object")
    parser.add_argument("--batch_size", type=int, default=1, help="images at once")
    parser.add_argument("--max_images", type=int, default=100, help="only the first N images")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    parser.add_argument(
        "--exact_batches",
        action="store_true",
        help="give each image of a batch what it gets alone, whatever its padding",
    )


def run(args: argparse.Namespace) -> int:
    from ..inference.detector import Detector
    from ..inference.engine import check_precision
    from ..inference.kept_memory import keep_freed_memory
    from ..training.assembly import open_device

    if args.max_images < 1:
        raise ValueError(f"--max_images is {args.max_images}; expected at least 1")
    device = open_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    for precision in args.precision:
        check_precision(precision, device)
    source = args.weights or args.model or ("detr_resnet50" if args.sources else "detr_tiny")
    detector = Detector(source, device, name=args.model, exact_batches=args.exact_batches)
    images = _images(args)
    failed = False
    for precision in args.precision:
        parity = detector.verify(images, args.threshold, args.batch_size, precision)
        faults = parity.faults(precision)
        print(f"{precision}: {'does not hold' if faults else 'holds'}. {parity}")
        for fault in faults:
            print(f"{precision}: {fault}")
        failed |= bool(faults)
    return int(failed)


def _images(args: argparse.Namespace) -> list:
    """Paths, or generated pictures."""
    from ..data.shapes import ShapesDataset
    from ..inference.images import list_sources

    if args.sources:
        paths = [path for source in args.sources for path in list_sources(source)[0]]
        return paths[: args.max_images]
    scenes = ShapesDataset(args.max_images, seed=_SEED)
    return [scenes.scene(index).image for index in range(args.max_images)]

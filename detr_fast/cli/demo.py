"""`detr-fast demo`: the whole package at work on generated shapes, with nothing to download."""

import argparse
from pathlib import Path

# Held out: training and validation on shapes use the series 0 and 1 unless told otherwise.
_HELD_OUT_SEED = 1000
_COLUMNS = 4


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="evaluate the shipped model on generated shapes and draw what it detects",
        description="Evaluates the small DETR that is shipped with the package on held-out "
        "generated shapes, draws detections, shows where every operation runs, and times matching "
        "beside a SciPy loop. Needs no data, no weights and no network.",
    )
    parser.add_argument("--images", type=int, default=300, help="held-out images to evaluate on")
    parser.add_argument("--pictures", type=int, default=12, help="pictures to draw")
    parser.add_argument("--output", metavar="DIR", default="demo", help="folder for the pictures")
    parser.add_argument("--threshold", type=float, default=0.7, help="least score that is drawn")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")


def run(args: argparse.Namespace) -> int:
    from .._environment import operations
    from ..data.shapes import ShapesDataset
    from ..inference.detector import Detector
    from .env import render_operations

    for name, least in (("images", 1), ("pictures", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; expected at least {least}")
    detector = Detector("detr_tiny", device=args.device)
    held_out = ShapesDataset(max(args.images, args.pictures), seed=_HELD_OUT_SEED)

    figures = _evaluate(detector, args.images)
    print(f"detr_tiny on {figures['images']} held-out images of shapes ({detector.device}):")
    print(f"AP {figures['AP']:.3f}   AP50 {figures['AP50']:.3f}   AP75 {figures['AP75']:.3f}\n")

    scenes = [held_out.scene(index).image for index in range(args.pictures)]
    results = detector.predict(scenes, threshold=args.threshold)
    if results:
        path = _save(results, Path(args.output))
        print(f"{sum(map(len, results))} objects in {len(results)} pictures, drawn in {path}\n")

    print("\n".join(render_operations(operations())), end="\n\n")
    print(_time_matching(detector.device))
    return 0


def _evaluate(detector, images: int) -> dict:
    from ..data.build import build_loader
    from ..data.shapes import ShapesDataset
    from ..data.transforms import val_transform
    from ..evaluation.coco import CocoEvaluator
    from ..evaluation.evaluate import evaluate

    size = detector.preprocess
    dataset = ShapesDataset(
        images, _HELD_OUT_SEED, transform=val_transform(size.short_side, size.max_size)
    )
    evaluator = CocoEvaluator(dataset.ground_truth(), dataset.label_map)
    # One image a batch, as `Detector.predict` sees them.
    loader = build_loader(dataset, batch_size=1)
    return evaluate(detector.model, loader, evaluator, None, detector.device)


def _save(results: list, folder: Path) -> Path:
    """Writes every picture, and all of them on one sheet, whose path it returns."""
    from PIL import Image

    pictures = []
    for index, detections in enumerate(results):
        pictures.append(Image.open(detections.save(folder / f"shapes_{index:02d}.png")))
    width = max(picture.width for picture in pictures) + 8
    height = max(picture.height for picture in pictures) + 8
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width - 8, rows * height - 8), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    path = folder / "detections.png"
    sheet.save(path)
    return path


def _time_matching(device) -> str:
    """Six layers of a COCO-like batch, matched by the operation and by the SciPy loop."""
    import torch

    from ..ops.set_matching import set_matching
    from ..reference import set_matching as reference

    generator = torch.Generator().manual_seed(0)
    layers, images, queries, classes = 6, 8, 100, 92
    counts = torch.randint(1, 15, (images,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    total = int(offsets[-1])
    arguments = (
        torch.randn(layers, images, queries, classes, generator=generator).to(device),
        torch.rand(layers, images, queries, 4, generator=generator).mul(0.4).add(0.1).to(device),
        torch.randint(classes - 1, (total,), generator=generator).to(device),
        torch.rand(total, 4, generator=generator).mul(0.4).add(0.1).to(device),
        offsets,
    )
    weights = {"weight_class": 1.0, "weight_bbox": 5.0, "weight_giou": 2.0}
    ours, scipy = _median_milliseconds(
        lambda: set_matching(*arguments, **weights),
        lambda: reference.set_matching(*arguments, **weights),
        device,
    )
    return (
        f"matching {layers} layers x {images} images x {queries} queries with {total} targets: "
        f"{ours:.2f} ms, a SciPy loop {scipy:.2f} ms ({scipy / ours:.1f} times as long; medians)"
    )


def _median_milliseconds(first, second, device, rounds: int = 20) -> tuple[float, float]:
    """Medians of two calls taken in turn, after a warm-up of each."""
    import statistics

    from ..inference.benchmark.timing import timed

    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 2):
        for call, series in zip((first, second), times, strict=True):
            _, seconds = timed(call, device)
            if round_ >= 2:
                series.append(1e3 * seconds)
    return statistics.median(times[0]), statistics.median(times[1])

"""`detr-fast predict`: detects objects in images, draws them, and writes them as COCO JSON."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

# Formats that hold a drawn picture well; pictures of others are written as PNG.
_KEPT_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="detect objects in images",
        description="Detects objects in image files and folders. Into the output folder go the "
        "images with the objects drawn, and detections.json: images, categories and, as "
        "annotations with a score, the objects, in COCO's format.",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="image file or folder")
    parser.add_argument(
        "--resume", "--weights", dest="weights", help="path, URL or zoo name of the weights"
    )
    parser.add_argument(
        "--model",
        help="name of the zoo: its own weights (by default detr_resnet50), or with --weights the "
        "model that they are of",
    )
    parser.add_argument("--threshold", type=float, default=0.7, help="least score of an object")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    parser.add_argument("--output", default="predictions", metavar="DIR", help="folder to write to")


def run(args: argparse.Namespace) -> int:
    from ..inference.detector import Detector
    from ..inference.images import list_sources
    from ..training.assembly import open_device

    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold is {args.threshold}; expected a probability in [0, 1]")
    paths = [path for source in args.sources for path in list_sources(source)[0]]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"no image or folder at {', '.join(missing)}")
    source = args.weights or args.model or "detr_resnet50"
    detector = Detector(source, open_device(args.device), name=args.model)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)

    images, annotations, unread = [], [], []
    drawn: set[str] = set()
    for path in paths:
        try:
            detections = detector.predict(path, args.threshold)
        except (ValueError, OSError) as error:
            # One damaged file among thousands does not cost the others.
            print(f"detr-fast: {error}", file=sys.stderr)
            unread.append(path)
            continue
        image_id = len(images) + 1
        height, width = detections.image_size
        images.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        annotations += detections.to_coco(image_id)
        picture = detections.save(output / _free_name(path, drawn))
        print(f"{path} {width}x{height}: {_count(detections.class_names)} -> {picture}")
    for number, annotation in enumerate(annotations, start=1):
        _, _, box_width, box_height = annotation["bbox"]
        annotation |= {"id": number, "area": box_width * box_height, "iscrowd": 0}
    results = {
        "images": images,
        "annotations": annotations,
        "categories": list(detector.label_map.categories),
    }
    (output / "detections.json").write_text(json.dumps(results))
    print(f"{len(annotations)} objects in {len(images)} images -> {output / 'detections.json'}")
    if unread:
        print(f"detr-fast: {len(unread)} of {len(paths)} images were not read", file=sys.stderr)
    return 1 if unread else 0


def _free_name(path: Path, taken: set[str]) -> str:
    """A file name for the drawn picture; images of one name come from different folders."""
    suffix = path.suffix if path.suffix.lower() in _KEPT_SUFFIXES else ".png"
    name, number = f"{path.stem}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{path.stem}_{number}{suffix}"
    taken.add(name)
    return name


def _count(names: tuple[str, ...]) -> str:
    return ", ".join(f"{n} {name}" for name, n in Counter(names).most_common()) or "nothing"

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
        "annotations with a score, the objects, in COCO's format. With --panoptic, segments "
        "instead of objects: panoptic.json, and in panoptic/ a PNG of segment ids for each image.",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="image file or folder")
    parser.add_argument(
        "--resume", "--weights", dest="weights", help="path, URL or zoo name of the weights"
    )
    parser.add_argument(
        "--model",
        help="name of the zoo: its own weights (by default detr_resnet50, with --panoptic "
        "detr_resnet50_panoptic), or with --weights the model that they are of",
    )
    parser.add_argument(
        "--panoptic", action="store_true", help="divide images into segments of things and stuff"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="least score of an object (0.7), with --panoptic of a segment (0.85)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    parser.add_argument("--output", default="predictions", metavar="DIR", help="folder to write to")


def run(args: argparse.Namespace) -> int:
    from ..inference.detector import Detector
    from ..inference.images import list_sources
    from ..inference.kept_memory import keep_freed_memory
    from ..training.assembly import open_device

    threshold = args.threshold
    if threshold is None:
        threshold = 0.85 if args.panoptic else 0.7
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold is {threshold}; expected a probability in [0, 1]")
    paths = [path for source in args.sources for path in list_sources(source)[0]]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"no image or folder at {', '.join(missing)}")
    default = "detr_resnet50_panoptic" if args.panoptic else "detr_resnet50"
    source = args.weights or args.model or default
    device = open_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    detector = Detector(source, device, name=args.model)
    if args.panoptic and not detector.has_masks:
        raise ValueError(f"{source} has no masks; use a model such as detr_resnet50_panoptic")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)

    images, annotations, unread = [], [], []
    drawn: set[str] = set()
    for path in paths:
        try:
            detections = detector.predict(path, threshold, panoptic_threshold=threshold)
        except (ValueError, OSError) as error:
            # One damaged file among thousands does not cost the others.
            print(f"detr-fast: {error}", file=sys.stderr)
            unread.append(path)
            continue
        image_id = len(images) + 1
        height, width = detections.image_size
        images.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        name = _free_name(path, drawn)
        if args.panoptic:
            found = detections.panoptic
            names = found.names
            annotations.append(_panoptic_annotation(image_id, found, output, name))
            picture = output / name
            detections.plot_panoptic().save(picture)
        else:
            names = detections.class_names
            annotations += detections.to_coco(image_id)
            picture = detections.save(output / name)
        print(f"{path} {width}x{height}: {_count(names)} -> {picture}")
    results = {
        "images": images,
        "annotations": annotations,
        "categories": list(detector.label_map.categories),
    }
    if args.panoptic:
        count, what, file = (
            sum(len(a["segments_info"]) for a in annotations),
            "segments",
            "panoptic",
        )
    else:
        _number(annotations)
        count, what, file = len(annotations), "objects", "detections"
    path = output / f"{file}.json"
    path.write_text(json.dumps(results))
    print(f"{count} {what} in {len(images)} images -> {path}")
    if unread:
        print(f"detr-fast: {len(unread)} of {len(paths)} images were not read", file=sys.stderr)
    return 1 if unread else 0


def _panoptic_annotation(image_id: int, found, output: Path, name: str) -> dict:
    """Writes the map beside the picture, and returns its entry of the JSON."""
    path = found.save(output / "panoptic" / (name if name.endswith(".png") else f"{name}.png"))
    return {
        "image_id": image_id,
        "file_name": path.name,
        "segments_info": found.segments_info,
    }


def _number(annotations: list[dict]) -> None:
    """What COCO's format wants of annotations beside what was detected."""
    for number, annotation in enumerate(annotations, start=1):
        _, _, width, height = annotation["bbox"]
        annotation |= {"id": number, "area": width * height, "iscrowd": 0}


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

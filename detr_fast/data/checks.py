"""A check of a whole data set before the first step of training.

Most trainings that end with an AP of 0 were lost in their data. The check reads all annotations,
and on request all images, and lists every fault with counts and first examples.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .box_checks import BoxChecks
from .check_report import DataError, DataReport, Describer, Finding, Findings
from .images import ImageError, read_image
from .label_map import LabelMap

__all__ = ["DataError", "DataReport", "Finding", "check_annotations", "check_dataset"]


def check_dataset(
    dataset: Dataset, num_queries: int | None = None, decode: bool = False
) -> DataReport:
    """Checks annotations and image files of a data set.

    Args:
        dataset: has `ground_truth()` and `label_map`; where it also has an `image_folder`, the
            files are looked for in it. Where its `on_error` is "skip", unreadable images are
            warnings.
        num_queries: of the model, which can find no more objects in an image.
        decode: decode every image too, which finds truncated and corrupt ones and sizes that
            contradict the annotations; otherwise only missing ones are found.

    Returns:
        The report; nothing is raised for what it holds.
    """
    content = dataset.ground_truth()
    folder = getattr(dataset, "image_folder", None)
    source = getattr(dataset, "annotation_file", None)
    report = check_annotations(
        content, dataset.label_map, num_queries, str(source or type(dataset).__name__)
    )
    if folder is not None:
        faults = _unreadable(content["images"], Path(folder), decode)
        skip = getattr(dataset, "on_error", "fail") == "skip"
        advice = "skipped in training." if skip else "restore them, or use on_error='skip'."
        name = "unreadable images" if decode else "missing images"
        found = Findings(len(content["images"]))
        found.add(name, faults, advice, is_error=not skip)
        report.findings = sorted(report.findings + found.all, key=lambda f: not f.is_error)
    return report


def check_annotations(
    content: Mapping[str, Any],
    label_map: LabelMap,
    num_queries: int | None = None,
    name: str = "annotations",
) -> DataReport:
    """Checks a COCO-format dict without its images.

    Args:
        content: with `images`, `annotations` and `categories`.
        label_map: of the data set or the model.
        num_queries: see `check_dataset`.
        name: for the headline of the report.
    """
    images = {image["id"]: image for image in content["images"]}
    annotations = content["annotations"]
    describe = Describer(images, content["categories"])
    boxes = BoxChecks(images, describe)
    unknown_images, unknown_categories = [], []
    objects: Counter = Counter()
    used: Counter = Counter()
    for annotation in annotations:
        if annotation["image_id"] not in images:
            unknown_images.append(describe(annotation))
        elif annotation["category_id"] not in label_map:
            unknown_categories.append(describe(annotation, category=True))
        elif not annotation.get("iscrowd", 0) and boxes.accepts(annotation):
            objects[annotation["image_id"]] += 1
            used[annotation["category_id"]] += 1

    found = Findings(len(content["images"]))
    if not images:
        found.add("empty data set", ["no images"], "nothing to train on.", is_error=True)
    elif not objects:
        what = "no annotations" if not annotations else "no usable annotation"
        found.add(what, [], "nothing to learn from.", is_error=True, count=1, total=1)
    found.add(
        "repeated image ids",
        (f"image id {i} stands {n} times" for i, n in _repeated(content["images"])),
        "ids must be unique.",
        is_error=True,
    )

    found.total = len(annotations)
    found.add(
        "repeated annotation ids",
        (f"annotation id {i} stands {n} times" for i, n in _repeated(annotations)),
        "evaluation would lose all but one; ids must be unique.",
        is_error=True,
    )
    found.add(
        "unknown images",
        unknown_images,
        "no image has that id.",
        is_error=True,
        tolerable=True,
    )
    found.add("unknown categories", unknown_categories, "not in the label map.", is_error=True)
    boxes.report_to(found)

    found.total = len(content["categories"])
    found.add(
        "categories named differently",
        _renamed(content["categories"], label_map),
        "the label map gives these ids other names; is it of another data set?",
    )
    unused = [c for c in content["categories"] if not used[c["id"]]]
    found.add(
        "unused categories",
        (f"category_id {c['id']} ('{c.get('name', c['id'])}')" for c in unused),
        "nothing to learn or to measure for them.",
    )

    found.total = len(content["images"])
    found.add(
        "images without objects",
        (describe.image(i) for i in images if not objects[i]),
        "trained on as background.",
    )
    if num_queries is not None:
        crowded = [(i, n) for i, n in objects.items() if n > num_queries]
        found.add(
            f"more than {num_queries} objects",
            (f"{describe.image(i)}: {n} objects" for i, n in crowded),
            "the model has too few queries to find them all.",
        )
    return DataReport(
        name,
        len(content["images"]),
        len(annotations),
        len(content["categories"]),
        sum(objects.values()),
        sorted(found.all, key=lambda finding: not finding.is_error),
    )


def _repeated(entries: Iterable[Mapping]) -> list[tuple[int, int]]:
    counts = Counter(entry["id"] for entry in entries if "id" in entry)
    return [(i, n) for i, n in counts.items() if n > 1]


def _renamed(categories: Iterable[Mapping], label_map: LabelMap) -> Iterable[str]:
    for category in categories:
        if category["id"] not in label_map or "name" not in category:
            continue
        expected = label_map.name(label_map.index(category["id"]))
        if str(category["name"]).casefold() != expected.casefold():
            yield f"category_id {category['id']}: '{category['name']}' here, '{expected}' there"


def _unreadable(images: Iterable[Mapping], folder: Path, decode: bool) -> list[str]:
    def fault(image: Mapping) -> str | None:
        path = folder / image["file_name"]
        if not decode:
            return None if path.is_file() else f"{path} (image id {image['id']}): no such file"
        size = (image.get("height"), image.get("width"))
        try:
            read_image(path, image["id"], size if all(size) else None)
        except ImageError as error:
            return str(error)
        return None

    # Pillow decodes without the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [message for message in pool.map(fault, images) if message is not None]

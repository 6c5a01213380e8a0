"""A check of a whole data set before the first step of training.

Most trainings that end with an AP of 0 were lost in their data. The check reads all annotations,
and on request all images, and lists every fault with counts and first examples.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .coco import finite_box
from .images import ImageError, read_image
from .label_map import LabelMap

_EXAMPLES = 3
# COCO's own boxes end up to a pixel off the image, by rounding.
_OFF_IMAGE_PIXELS = 1.0
# Share of boxes that fit the image as xyxy, and of those that do not as xywh, for calling them so.
_XYXY_FIT = 0.99
_XYWH_MISFIT = 0.2


class DataError(ValueError):
    """A data set is not fit for training; the message is the report of its errors."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Attributes:
        name: the fault in two or three words.
        is_error: whether training would go wrong; otherwise it is a warning.
        count: how many images, annotations or categories have it.
        total: out of how many.
        examples: the first of them, naming file, image id and annotation id.
        advice: what follows from it, or what to do.
        tolerable: whether `DataReport.raise_for_errors` accepts a small share of it.
    """

    name: str
    is_error: bool
    count: int
    total: int
    examples: tuple[str, ...]
    advice: str
    tolerable: bool = False

    def __str__(self) -> str:
        share = f"{self.count / self.total:.1%}" if self.total else "-"
        head = f"{'ERROR' if self.is_error else 'warning':<8}{self.name:<32}{self.count:>8}"
        examples = "".join(f"\n          {example}" for example in self.examples)
        more = self.count - len(self.examples)
        rest = f"\n          and {more} more" if more > 0 and self.examples else ""
        return f"{head}{share:>8}  {self.advice}{examples}{rest}"


@dataclass
class DataReport:
    """What a check found.

    Attributes:
        name: of the data set, for the headline.
        images: number of images.
        annotations: number of annotations, crowds and faulty ones included.
        categories: number of categories.
        usable: number of annotations that training uses.
        findings: errors first.
    """

    name: str
    images: int
    annotations: int
    categories: int
    usable: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_error]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.is_error]

    def raise_for_errors(self, threshold: float = 0.01) -> None:
        """Stops a training that could not succeed.

        Args:
            threshold: share of annotations that is accepted without area, off the image, not finite
                or of an unknown image (training leaves them out), each kind by itself. Other errors
                are never accepted.

        Raises:
            DataError: with the report of the errors.
        """
        fatal = [e for e in self.errors if not (e.tolerable and e.count <= threshold * e.total)]
        if fatal:
            raise DataError(
                "\n".join([f"{self._headline()} {len(fatal)} error(s):", *map(str, fatal)])
            )

    def __str__(self) -> str:
        if not self.findings:
            return f"{self._headline()} no faults found."
        return "\n".join([self._headline(), *map(str, self.findings)])

    def _headline(self) -> str:
        return (
            f"Data check of {self.name}: {self.images} images, {self.annotations} annotations "
            f"({self.usable} usable), {self.categories} categories."
        )


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
        found = _Findings(len(content["images"]))
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
    describe = _Describer(images, content["categories"])
    boxes = _Boxes(images, describe)
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

    found = _Findings(len(content["images"]))
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


class _Findings:
    """Collects findings, leaving out those that did not occur."""

    def __init__(self, total: int):
        self.total = total
        self.all: list[Finding] = []

    def add(
        self,
        name: str,
        occurrences: Iterable[str],
        advice: str,
        is_error: bool = False,
        tolerable: bool = False,
        count: int | None = None,
        total: int | None = None,
    ) -> None:
        occurrences = list(occurrences)
        count = len(occurrences) if count is None else count
        total = self.total if total is None else total
        if count:
            first = tuple(occurrences[:_EXAMPLES])
            self.all.append(Finding(name, is_error, count, total, first, advice, tolerable))


class _Describer:
    """Says where an annotation or an image is to be found."""

    def __init__(self, images: Mapping[int, Mapping], categories: Iterable[Mapping]):
        self._images = images
        self._names = {category["id"]: category.get("name") for category in categories}

    def image(self, image_id: int) -> str:
        image = self._images.get(image_id)
        return f"image {image_id}" + ("" if image is None else f" ({image.get('file_name')})")

    def __call__(self, annotation: Mapping, category: bool = False) -> str:
        where = f"annotation {annotation.get('id')} of {self.image(annotation['image_id'])}"
        if not category:
            return f"{where}: bbox {annotation.get('bbox')}"
        category_id = annotation["category_id"]
        return f"{where}: category_id {category_id} ('{self._names.get(category_id)}')"


class _Boxes:
    """Sorts boxes by their faults; `accepts` says whether training uses one."""

    def __init__(self, images: Mapping[int, Mapping], describe: _Describer):
        self._images = images
        self._describe = describe
        self._faults: dict[str, list[str]] = {
            kind: [] for kind in ("malformed", "negative", "empty", "off", "clipped")
        }
        self._seen = self._unit = self._xywh_misfits = self._xyxy_fits = 0
        self._examples: list[str] = []

    def accepts(self, annotation: Mapping) -> bool:
        box = finite_box(annotation)
        if box is None:
            return self._reject("malformed", annotation)
        image = self._images[annotation["image_id"]]
        width, height = image.get("width") or float("inf"), image.get("height") or float("inf")
        x, y, w, h = box
        self._count_units(annotation, box, width, height)
        if w < 0 or h < 0:
            return self._reject("negative", annotation)
        if w == 0 or h == 0:
            return self._reject("empty", annotation)
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return self._reject("off", annotation)
        beyond = max(-x, -y, x + w - width, y + h - height)
        if beyond > _OFF_IMAGE_PIXELS:
            self._reject("clipped", annotation)
        return True

    def report_to(self, found: _Findings) -> None:
        if self._seen and self._unit == self._seen:
            found.add(
                "boxes in the wrong unit",
                self._examples,
                "all are within [0, 1]: normalised? COCO's are x, y, width, height in pixels.",
                is_error=True,
                count=self._seen,
            )
        elif self._seen and (
            self._xyxy_fits >= _XYXY_FIT * self._seen
            and self._xywh_misfits >= _XYWH_MISFIT * self._seen
        ):
            found.add(
                "boxes in the wrong format",
                self._examples,
                "they fit the images as x0, y0, x1, y1; COCO's are x, y, width, height.",
                is_error=True,
                count=self._seen,
            )
        faults = self._faults
        found.add(
            "negative widths or heights",
            faults["negative"],
            "COCO's boxes are x, y, width, height.",
            is_error=True,
        )
        left_out = {"is_error": True, "tolerable": True}
        found.add("boxes not finite", faults["malformed"], "not four finite numbers.", **left_out)
        found.add("boxes without area", faults["empty"], "left out of training.", **left_out)
        found.add("boxes off the image", faults["off"], "left out of training.", **left_out)
        found.add("boxes partly off the image", faults["clipped"], "clipped in training.")

    def _reject(self, kind: str, annotation: Mapping) -> bool:
        self._faults[kind].append(self._describe(annotation))
        return False

    def _count_units(
        self, annotation: Mapping, box: tuple[float, ...], width: float, height: float
    ) -> None:
        x, y, w, h = box
        self._seen += 1
        self._unit += all(0 <= value <= 1 for value in box)
        self._xywh_misfits += x + w > width + 1 or y + h > height + 1
        self._xyxy_fits += x <= w <= width + 1 and y <= h <= height + 1
        if len(self._examples) < _EXAMPLES:
            self._examples.append(self._describe(annotation))


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

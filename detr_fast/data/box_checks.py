"""Faults of the boxes in COCO annotations, one by one and of all together."""

from collections.abc import Mapping

from .check_report import EXAMPLES, Describer, Findings
from .coco import finite_box

# COCO's own boxes end up to a pixel off the image, by rounding.
_OFF_IMAGE_PIXELS = 1.0
# Share of boxes that fit the image as xyxy, and of those that do not as xywh, for calling them so.
_XYXY_FIT = 0.99
_XYWH_MISFIT = 0.2


class BoxChecks:
    """Sorts boxes by their faults.

    Args:
        images: of the data set, by their ids.
        describe: names an annotation in the report.
    """

    def __init__(self, images: Mapping[int, Mapping], describe: Describer):
        self._images = images
        self._describe = describe
        self._faults: dict[str, list[str]] = {
            kind: [] for kind in ("malformed", "negative", "empty", "off", "clipped")
        }
        self._seen = self._unit = self._xywh_misfits = self._xyxy_fits = 0
        self._examples: list[str] = []

    def accepts(self, annotation: Mapping) -> bool:
        """Looks at the box of an annotation, whose image is known: whether training uses it."""
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

    def report_to(self, found: Findings) -> None:
        """Adds what is wrong with the boxes looked at, of all together first."""
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
        if len(self._examples) < EXAMPLES:
            self._examples.append(self._describe(annotation))

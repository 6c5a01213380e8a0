"""Panoptic quality (Kirillov et al., CVPR 2019), with crowds and void as COCO defines them.

A predicted and a true segment of one class match if their IoU exceeds 0.5, which at most one pair
of each can. PQ = SQ x RQ of a class: SQ is the mean IoU of its matches, RQ = TP / (TP + FP/2 +
FN/2), and the figures of several classes are means over the classes that occur.

The result is that of panopticapi, except where annotations contradict themselves: areas are counted
in the maps, not read from the JSON, and of several crowds of one class in an image all count.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch.distributed as dist

from ..data.panoptic_png import VOID, PanopticError

_ID_BITS = 32
_ID_MASK = 2**_ID_BITS - 1


class Counts(NamedTuple):
    """What PQ of one class is made of: the sum of the matches' IoUs, and TP, FP and FN."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def plus(self, *, iou: float = 0.0, tp: int = 0, fp: int = 0, fn: int = 0) -> "Counts":
        return Counts(self.iou + iou, self.tp + tp, self.fp + fp, self.fn + fn)


class PanopticEvaluator:
    """Collects panoptic maps image by image and computes PQ, SQ and RQ.

    Every process of a distributed evaluation feeds its own images; `synchronize` then gives all of
    them the union. Only images that were given to `update` count.

    Args:
        ground_truth: a COCO panoptic dictionary: `images`, `categories` with `isthing`, and
            `annotations`, one an image, with `image_id` and `segments_info`.
        read_ids: from an image id to its true segment ids, (H, W).

    Raises:
        PanopticError: a segment has a category that the ground truth does not define, or an image
            two annotations.
    """

    def __init__(self, ground_truth: Mapping, read_ids: Callable[[int], np.ndarray]):
        self._categories = {c["id"]: c for c in ground_truth["categories"]}
        self._read_ids = read_ids
        self._segments: dict[int, list[Mapping]] = {}
        for annotation in ground_truth["annotations"]:
            image_id = annotation["image_id"]
            if image_id in self._segments:
                raise PanopticError(f"image {image_id} has two panoptic annotations.")
            self._segments[image_id] = list(annotation["segments_info"])
            self._refuse_unknown(image_id, self._segments[image_id], "the ground truth")
        self._counts: dict[int, dict[int, Counts]] = {}

    def update(self, predictions: Mapping[int, tuple[np.ndarray, Iterable[Mapping]]]) -> None:
        """Add the maps of some images.

        Args:
            predictions: image id to segment ids (H, W) and their `segments_info` (`id`,
                `category_id`). An image id given again replaces what was there.

        Raises:
            PanopticError: an image without ground truth, of another size than it, an unknown
                category, or ids in the map and in `segments_info` that differ.
        """
        for image_id, (ids, segments) in predictions.items():
            image_id, segments = int(image_id), list(segments)
            if image_id not in self._segments:
                raise PanopticError(
                    f"a map was predicted for image {image_id}, which has no panoptic annotation; "
                    "evaluate on the data set that the annotations belong to."
                )
            self._refuse_unknown(image_id, segments, "the prediction")
            truth = self._read_ids(image_id)
            if truth.shape != np.shape(ids):
                raise PanopticError(
                    f"the map predicted for image {image_id} has shape {np.shape(ids)}, the true "
                    f"one {truth.shape}."
                )
            try:
                counts = count_matches(truth, self._segments[image_id], np.asarray(ids), segments)
            except PanopticError as error:
                raise PanopticError(f"image {image_id}: {error}") from None
            self._counts[image_id] = counts

    def synchronize(self) -> None:
        """Give every process the images of all processes; see `CocoEvaluator.synchronize`."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        gathered: list = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, self._counts)
        for counts in reversed(gathered):
            self._counts = {**self._counts, **counts}

    def summarize(self) -> dict:
        """Compute the figures over the images seen.

        Returns:
            A dictionary with

            * `PQ`, `SQ`, `RQ` over all classes, with `_th` over things and `_st` over stuff:
              floats in [0, 1], NaN where no class occurs;
            * `per_class`: a list of `category_id`, `name`, `isthing`, `PQ`, `SQ`, `RQ`, `TP`, `FP`
              and `FN` in the order of category ids; NaN for a class that does not occur;
            * `classes`: how many classes occur;
            * `images`: how many images were evaluated.

        Raises:
            ValueError: no image was given to `update`.
        """
        if not self._counts:
            raise ValueError("no image was evaluated: update() was never called with an image")
        total: dict[int, Counts] = defaultdict(Counts)
        # In the order of ids, so that sums do not depend on who evaluated what.
        for _, of_image in sorted(self._counts.items()):
            for category_id, counts in of_image.items():
                total[category_id] = total[category_id].plus(**counts._asdict())
        rows = [
            {
                "category_id": category_id,
                "name": str(category.get("name", category_id)),
                "isthing": int(category.get("isthing", 1)),
                **_quality(total[category_id]),
            }
            for category_id, category in sorted(self._categories.items())
        ]
        occurring = [row for row in rows if not math.isnan(row["PQ"])]
        summary: dict = {}
        for suffix, group in (
            ("", occurring),
            ("_th", [row for row in occurring if row["isthing"]]),
            ("_st", [row for row in occurring if not row["isthing"]]),
        ):
            for name in ("PQ", "SQ", "RQ"):
                values = [row[name] for row in group]
                summary[name + suffix] = sum(values) / len(values) if values else math.nan
        summary["per_class"] = rows
        summary["classes"] = len(occurring)
        summary["images"] = len(self._counts)
        return summary

    def _refuse_unknown(self, image_id: int, segments: Iterable[Mapping], where: str) -> None:
        for segment in segments:
            if segment["category_id"] not in self._categories:
                raise PanopticError(
                    f"segment {segment['id']} of image {image_id} in {where} has category_id "
                    f"{segment['category_id']}, which is not among the categories of the ground "
                    "truth. Are class indices given instead of category ids?"
                )


def count_matches(
    truth_ids: np.ndarray,
    truth: Iterable[Mapping],
    predicted_ids: np.ndarray,
    predicted: Iterable[Mapping],
) -> dict[int, Counts]:
    """Matches the segments of one image.

    Void and, for predictions of its class, crowds count neither for nor against a prediction: they
    are left out of its IoU's union (void alone), and a prediction that lies in them by more than
    half is no false positive.

    Args:
        truth_ids: (H, W), 0 is void.
        truth: `id`, `category_id` and optionally `iscrowd` of each true segment. One without
            pixels cannot be found, and is a false negative.
        predicted_ids: (H, W), 0 is void unless `predicted` has it.
        predicted: `id` and `category_id` of each predicted segment.

    Returns:
        The counts of every category that occurs.

    Raises:
        PanopticError: a segment of either side is listed twice, a predicted one has no pixels, or
            a predicted id is not listed.
    """
    truth, predicted = _by_id(truth), _by_id(predicted)
    # One number for each pair of ids: sorting pairs themselves takes ten times as long.
    keys, areas = np.unique(
        (truth_ids.astype(np.int64) << _ID_BITS) + predicted_ids, return_counts=True
    )
    intersections = {
        (key >> _ID_BITS, key & _ID_MASK): area
        for key, area in zip(keys.tolist(), areas.tolist(), strict=True)
    }
    truth_area: dict[int, int] = defaultdict(int)
    predicted_area: dict[int, int] = defaultdict(int)
    for (t, p), area in intersections.items():
        truth_area[t] += area
        predicted_area[p] += area
    _check_listed(predicted, predicted_area)

    counts: dict[int, Counts] = defaultdict(Counts)
    matched_truth, matched_predicted = set(), set()
    for (t, p), intersection in intersections.items():
        if t not in truth or p not in predicted or truth[t].get("iscrowd", 0):
            continue
        category = truth[t]["category_id"]
        if category != predicted[p]["category_id"]:
            continue
        void = intersections.get((VOID, p), 0)
        iou = intersection / (truth_area[t] + predicted_area[p] - intersection - void)
        if iou > 0.5:
            counts[category] = counts[category].plus(iou=iou, tp=1)
            matched_truth.add(t)
            matched_predicted.add(p)
    crowds = defaultdict(list)
    for t, segment in truth.items():
        category = segment["category_id"]
        if segment.get("iscrowd", 0):
            crowds[category].append(t)
        elif t not in matched_truth:
            counts[category] = counts[category].plus(fn=1)
    for p, segment in predicted.items():
        if p in matched_predicted:
            continue
        category = segment["category_id"]
        ignored = sum(intersections.get((t, p), 0) for t in (VOID, *crowds[category]))
        if ignored / predicted_area[p] <= 0.5:
            counts[category] = counts[category].plus(fp=1)
    return dict(counts)


def _by_id(segments: Iterable[Mapping]) -> dict[int, Mapping]:
    found: dict[int, Mapping] = {}
    for segment in segments:
        if segment["id"] in found:
            raise PanopticError(f"segment {segment['id']} is listed twice.")
        found[segment["id"]] = segment
    return found


def _check_listed(predicted: Mapping, areas: Mapping) -> None:
    for p in predicted:
        if p not in areas:
            raise PanopticError(f"predicted segment {p} has no pixels in the map.")
    for p in areas:
        if p not in predicted and p != VOID:
            raise PanopticError(f"the map has segment {p}, which segments_info does not list.")


def _quality(counts: Counts) -> dict[str, float]:
    errors = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
    if errors == 0:
        figures = dict.fromkeys(("PQ", "SQ", "RQ"), math.nan)
    else:
        figures = {
            "PQ": counts.iou / errors,
            "SQ": counts.iou / counts.tp if counts.tp else 0.0,
            "RQ": counts.tp / errors,
        }
    return {**figures, "TP": counts.tp, "FP": counts.fp, "FN": counts.fn}

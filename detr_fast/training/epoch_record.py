"""The figures of an evaluation as a line of the log has them, and what the best weights have."""

import math
from collections.abc import Mapping
from typing import Any


def test_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation under the names of the original's logs."""
    record: dict[str, Any] = {"test_coco_eval_bbox": figures["coco_eval_bbox"]}
    if "segm" in figures:
        record["test_coco_eval_masks"] = figures["segm"]["coco_eval_masks"]
    if "panoptic" in figures:
        for group, suffix in (("all", ""), ("th", "_th"), ("st", "_st")):
            record[f"test_PQ_{group}"] = {
                name.lower(): figures["panoptic"][name + suffix] for name in ("PQ", "SQ", "RQ")
            }
    return record


def score_of(record: Mapping[str, Any]) -> float:
    """What the best weights are chosen by: PQ, or AP of masks, or AP of boxes."""
    if "test_PQ_all" in record:
        # Null in a log where no class occurs.
        quality = record["test_PQ_all"]["pq"]
        return -math.inf if quality is None else quality
    return record.get("test_coco_eval_masks", record["test_coco_eval_bbox"])[0]

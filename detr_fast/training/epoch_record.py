"""An epoch's record in the log: the figures of its evaluation, its score, its line for the user."""

import math
from collections.abc import Mapping
from typing import Any


def test_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `evaluation.evaluate` under the names of the original's logs."""
    record: dict[str, Any] = {f"test_{name}": value for name, value in figures["losses"].items()}
    record["test_coco_eval_bbox"] = figures["coco_eval_bbox"]
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


def line_of(record: Mapping[str, Any], epochs: int) -> str:
    """What a user reads of an epoch's record, in a run of so many epochs."""
    line = f"epoch {record['epoch'] + 1}/{epochs}: loss {record.get('train_loss', math.nan):.3f}"
    if "test_coco_eval_bbox" in record:
        ap, ap50, *_ = map(_measured, record["test_coco_eval_bbox"])
        line += f", AP {ap:.3f}, AP50 {ap50:.3f}"
    if "test_coco_eval_masks" in record:
        line += f", mask AP {_measured(record['test_coco_eval_masks'][0]):.3f}"
    if "test_PQ_all" in record:
        line += f", PQ {record['test_PQ_all']['pq']:.3f}"
    return line


def _measured(value: float) -> float:
    """NaN for the -1 that the original's logs have where there was nothing to measure."""
    return value if value >= 0 else math.nan

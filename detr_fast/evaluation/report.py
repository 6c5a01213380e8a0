"""The figures of an evaluation as text for a terminal and as JSON."""

import json
import math
from collections.abc import Mapping

_TABLE = (
    ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)


def render(figures: Mapping) -> str:
    """Tables of AP and AR, of every class, of masks if there are, and of the averaged losses.

    Args:
        figures: as `evaluate` or `CocoEvaluator.summarize` returns them.

    Returns:
        Lines of text; AP and AR in [0, 1], "n/a" where there was nothing to measure.
    """
    lines = []
    for names in _TABLE:
        lines.append("  ".join(f"{name:<5} {_number(figures[name])}" for name in names))
    lines += ["", *_per_class(figures["per_class"])]
    if "segm" in figures:
        lines += ["", "masks:"]
        for names in _TABLE:
            lines.append("  ".join(f"{n:<5} {_number(figures['segm'][n])}" for n in names))
        lines += ["", *_per_class(figures["segm"]["per_class"])]
    if "panoptic" in figures:
        lines += ["", *_panoptic(figures["panoptic"])]
    if figures.get("losses"):
        lines += ["", *_losses(figures["losses"])]
    if figures["nonfinite_detections"]:
        lines += [
            "",
            f"{figures['nonfinite_detections']} detections were NaN or infinite and were left out",
        ]
    return "\n".join(line.rstrip() for line in lines)


def to_json(figures: Mapping) -> str:
    """The figures as JSON, which knows no NaN: null stands for what could not be measured."""
    return json.dumps(_without_nan(figures), indent=1)


def _per_class(rows: list[Mapping]) -> list[str]:
    width = max([len("class"), *(len(row["name"]) for row in rows)])
    lines = [f"{'class':<{width}}  {'id':>5}  objects   AP     AP50   AR100"]
    for row in rows:
        values = "  ".join(_number(row[name]) for name in ("AP", "AP50", "AR100"))
        lines.append(
            f"{row['name']:<{width}}  {row['category_id']:>5}  {row['instances']:>7}  {values}"
        )
    return lines


def _panoptic(figures: Mapping) -> list[str]:
    """PQ, SQ and RQ of all classes, of things and of stuff, and of every class."""
    rows = [
        (name, [figures[f"{f}{suffix}"] for f in ("PQ", "SQ", "RQ")])
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
    ]
    classes = [(row["name"], row["category_id"], row) for row in figures["per_class"]]
    width = max(len(name) for name in ("panoptic", *(name for name, _, _ in classes)))
    lines = [f"{'panoptic':<{width}}     id   PQ     SQ     RQ       TP     FP     FN"]
    for name, values in rows:
        lines.append(f"{name:<{width}}         {'  '.join(map(_number, values))}")
    for name, category_id, row in classes:
        values = "  ".join(_number(row[f]) for f in ("PQ", "SQ", "RQ"))
        counts = " ".join(f"{row[f]:>6}" for f in ("TP", "FP", "FN"))
        lines.append(f"{name:<{width}}  {category_id:>5}  {values} {counts}")
    return lines


def _losses(losses: Mapping[str, float]) -> list[str]:
    """One row for each term: weighted, and as it is; those of auxiliary layers come last."""
    terms = [name.removesuffix("_unscaled") for name in losses if name.endswith("_unscaled")]
    terms.sort(key=lambda name: (_layer(name) is not None, _layer(name) or 0))
    width = max(len(name) for name in ["loss", *terms])
    lines = [
        f"{'averages':<{width}}  weighted  unscaled",
        f"{'loss':<{width}}  {_wide(losses, 'loss')}",
    ]
    lines += [
        f"{name:<{width}}  {_wide(losses, name)}  {_wide(losses, f'{name}_unscaled')}"
        for name in terms
    ]
    return lines


def _layer(name: str) -> int | None:
    tail = name.rpartition("_")[2]
    return int(tail) if tail.isdigit() else None


def _number(value: float) -> str:
    return "n/a  " if math.isnan(value) else f"{value:.3f}"


def _wide(values: Mapping[str, float], name: str) -> str:
    if name not in values:
        return " " * 8
    return f"{'n/a':>8}" if math.isnan(values[name]) else f"{values[name]:8.4f}"


def _without_nan(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value

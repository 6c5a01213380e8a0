"""The course of a training run as curves."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_LOSSES = (
    ("loss", "total"),
    ("loss_ce", "class"),
    ("loss_bbox", "box L1"),
    ("loss_giou", "box GIoU"),
)
_MASK_LOSSES = (("loss_mask", "mask focal"), ("loss_dice", "mask dice"))
_TRAIN, _TEST = "#1f77b4", "#d62728"


def plot_log(
    log: str | os.PathLike | Iterable[Mapping], path: str | os.PathLike, title: str | None = None
) -> Path:
    """Draw losses, class error, cardinality error and AP over the epochs, and those of masks.

    Args:
        log: a `log.txt` with a JSON object a line, or such objects, under the field names of the
            original DETR: `epoch`, and with `train_` or `test_` before them `loss`, `loss_ce`,
            `loss_bbox`, `loss_giou`, `class_error`, `cardinality_error_unscaled`, and
            `test_coco_eval_bbox`; where masks are learned `loss_mask`, `loss_dice`,
            `test_coco_eval_masks` and `test_PQ_all`, `_th`, `_st`. Fields may be absent or null in
            any line. A last line that was cut off is left out.
        path: file to write; its suffix names the format, PNG for example.
        title: text above the curves.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: if there is no such log.
        ValueError: if the log has no epoch, or a line other than the last is not JSON.
    """
    from matplotlib.figure import Figure

    records = _read(log) if isinstance(log, str | os.PathLike) else list(log)
    if not records:
        raise ValueError(f"nothing to draw: {log if records != log else 'the log'} has no epoch")
    masks = any("train_loss_mask" in record or "test_loss_mask" in record for record in records)
    losses = [*_LOSSES, *(_MASK_LOSSES if masks else ())]
    panels = [*losses, ("class_error", "class error (%)"), ("cardinality", "cardinality error")]
    rows = 3 if masks else 2
    # The object interface: no global state, no display, usable from a thread of the trainer.
    height = 3.1 * rows
    figure = Figure(figsize=(13, height), dpi=100)
    edges = (0.04, 0.5 / height, 0.99, 1 - 0.68 / height)
    figure.subplots_adjust(*edges, wspace=0.2, hspace=0.36)
    axes = figure.subplots(rows, 4).flatten()
    for axis, (name, label) in zip(axes, panels, strict=False):
        field = "cardinality_error_unscaled" if name == "cardinality" else name
        drawn = [
            _line(axis, records, f"train_{field}", "train", _TRAIN),
            _line(axis, records, f"test_{field}", "validation", _TEST),
        ]
        _finish(axis, f"{label} loss" if name.startswith("loss") else label, drawn)
    _average_precision(axes[len(panels)], records, "test_coco_eval_bbox", "average precision")
    if masks:
        _average_precision(axes[-3], records, "test_coco_eval_masks", "AP of masks")
        _panoptic_quality(axes[-2], records)
    _learning_rate(axes[-1], records)
    figure.suptitle(title or _summary(records), fontsize=11, y=1 - 0.12 / height)
    path = Path(path)
    figure.savefig(path)
    return path


def _read(path: str | os.PathLike) -> list[dict]:
    lines = Path(path).read_text().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    return records


def _number(record: Mapping, position: int) -> int:
    """The epoch as people count; logs count from 0, as the original's do."""
    return record.get("epoch", position) + 1


def _line(
    axis, records, field: str, label: str, colour: str, index: int | str | None = None
) -> bool:
    """Draw one field, or an entry of it, over the epochs that have it; False if none has."""
    points = []
    for position, record in enumerate(records):
        value = record.get(field)
        if index is not None and value is not None:
            # The figures of COCO are -1 where there is nothing to measure.
            value = value[index] if value[index] is not None and value[index] >= 0 else None
        if value is not None and math.isfinite(value):
            points.append((_number(record, position), value))
    if points:
        # A single epoch makes no line, so it gets a dot.
        marker = "o" if len(points) < 3 else None
        axis.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, lw=1.6)
    return bool(points)


def _finish(axis, title: str, drawn: list[bool]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=6))
    if len({x for line in axis.lines for x in line.get_xdata()}) == 1:
        axis.set_xticks(axis.lines[0].get_xdata()[:1])
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if any(drawn):
        axis.legend(fontsize=8, frameon=False)
    else:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes)


def _average_precision(axis, records, field: str, name: str) -> None:
    drawn = [
        _line(axis, records, field, "AP", "#1b7837", index=0),
        _line(axis, records, field, "AP50", "#7fbf7b", index=1),
        _line(axis, records, field, "AP75", "#762a83", index=2),
    ]
    if any(drawn):
        axis.set_ylim(0, 1)
    _finish(axis, f"{name} (validation)", drawn)


def _panoptic_quality(axis, records) -> None:
    drawn = [
        _line(axis, records, "test_PQ_all", "PQ", "#1b7837", index="pq"),
        _line(axis, records, "test_PQ_th", "PQ of things", "#7fbf7b", index="pq"),
        _line(axis, records, "test_PQ_st", "PQ of stuff", "#762a83", index="pq"),
    ]
    if any(drawn):
        axis.set_ylim(0, 1)
    _finish(axis, "panoptic quality (validation)", drawn)


def _learning_rate(axis, records) -> None:
    drawn = [_line(axis, records, "train_lr", "learning rate", "#7f7f7f")]
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    _finish(axis, "learning rate", drawn)


# What a run is about, the first that it has.
_SCORES = (
    ("PQ", "test_PQ_all", "pq"),
    ("mask AP", "test_coco_eval_masks", 0),
    ("AP", "test_coco_eval_bbox", 0),
)


def _summary(records) -> str:
    epochs = "1 epoch" if len(records) == 1 else f"{len(records)} epochs"
    for name, field, index in _SCORES:
        scores = [
            (figures[index], _number(record, position))
            for position, record in enumerate(records)
            if (figures := record.get(field)) and figures[index] is not None and figures[index] >= 0
        ]
        if scores:
            score, epoch = max(scores, key=lambda pair: pair[0])  # the first, if several are equal
            return f"{epochs}; best {name} {score:.3f} in epoch {epoch}"
    return epochs

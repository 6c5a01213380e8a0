"""The folder of one training run: what was asked for, what came of it, and the weights.

weights/last.pth   to resume from, written after every epoch
weights/best.pth   the weights with the best AP, to detect with
args.yaml          every setting of the run
log.txt            a JSON object per epoch, under the field names of the original DETR
results.csv        the same as a table
results.png        the same as curves
"""

import csv
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# Drawing takes about a second, which is long beside an epoch of a small model.
_SECONDS_BETWEEN_PLOTS = 60.0
_DEFAULT_PARENT = Path("runs")


class RunFolder:
    """Reads and writes one run folder.

    Args:
        path: An existing folder; `create` and `reopen` give one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._plotted_at = -math.inf

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.path / "weights" / "last.pth"

    @property
    def best(self) -> Path:
        """Weights with the best AP so far."""
        return self.path / "weights" / "best.pth"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @classmethod
    def create(cls, path: str | Path | None = None) -> "RunFolder":
        """Makes a new folder.

        Args:
            path: Where; without one, the first free of runs/train, runs/train2, ...

        Raises:
            FileExistsError: `path` is a file or a folder with something in it.
        """
        if path is None:
            folder = _first_free(_DEFAULT_PARENT, "train")
        else:
            folder = Path(path)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise FileExistsError(
                    f"the output folder {folder} exists and is not empty; choose another, or "
                    f"resume the run in it from {folder / 'weights' / 'last.pth'}"
                )
            folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").mkdir(exist_ok=True)
        return cls(folder)

    @classmethod
    def reopen(
        cls, path: str | Path | None, checkpoint: str | Path, next_epoch: int
    ) -> "RunFolder":
        """Opens the folder to go on in, and forgets logged epochs that will be run again.

        Args:
            path: The folder; without one, that of the checkpoint, or a new one where the
                checkpoint lies in none.
            checkpoint: File that training is resumed from.
            next_epoch: Index of the epoch that training goes on with.

        Raises:
            FileExistsError: `path` has something in it, and not this checkpoint.
        """
        home = _home_of(checkpoint)
        if path is None and home is None:
            return cls.create()
        if path is not None and (home is None or Path(path).resolve() != home):
            return cls.create(path)
        folder = cls(home if path is None else path)
        for leftover in folder.last.parent.glob(".*.tmp"):
            leftover.unlink()
        records = [r for r in folder.records() if r["epoch"] < next_epoch]
        if folder.log.exists():
            folder.log.write_text("".join(map(_json_line, records)))
            folder._write_table(records)
        return folder

    def write_args(self, args: Mapping[str, Any]) -> None:
        """Writes args.yaml; `args` holds plain types only."""
        text = yaml.safe_dump(dict(args), sort_keys=False, allow_unicode=True)
        (self.path / "args.yaml").write_text(text)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds an epoch to the log, the table and, at most once a minute, the curves.

        Args:
            record: Field name to number, list of numbers or None. NaN and infinities are written
                as null, which is what JSON has for them.
        """
        with self.log.open("a") as file:
            file.write(_json_line(record))
        self._write_table(self.records())
        if time.monotonic() - self._plotted_at > _SECONDS_BETWEEN_PLOTS:
            self.plot()

    def records(self) -> list[dict[str, Any]]:
        """The logged epochs, in order. A last line cut off by a crash is left out."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise ValueError(f"{self.log}, line {number} is not JSON: {error}") from error
        return records

    def plot(self) -> None:
        """Draws results.png from the log, if it has an epoch."""
        if not self.records():
            return
        from ..visualization.curves import plot_log

        plot_log(self.log, self.path / "results.png")
        self._plotted_at = time.monotonic()

    def _write_table(self, records: list[dict[str, Any]]) -> None:
        from ..evaluation.coco import STAT_NAMES

        rows = []
        for record in records:
            row = {"epoch": record.get("epoch")}
            for name, value in record.items():
                if name == "test_coco_eval_bbox":
                    pairs = zip(STAT_NAMES, value, strict=True)
                    row.update((f"test_{stat}", number) for stat, number in pairs)
                elif name == "test_coco_eval_masks":
                    pairs = zip(STAT_NAMES, value, strict=True)
                    row.update((f"test_mask_{stat}", number) for stat, number in pairs)
                elif isinstance(value, Mapping):  # test_PQ_all, _th, _st
                    group = name.removeprefix("test_PQ_")
                    row.update((f"test_{stat}_{group}", number) for stat, number in value.items())
                else:
                    row[name] = value
            rows.append(row)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (self.path / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def _home_of(checkpoint: str | Path) -> Path | None:
    """The run folder that a checkpoint lies in, None for a file elsewhere."""
    weights = Path(checkpoint).resolve().parent
    inside = weights.name == "weights" and (weights.parent / "args.yaml").is_file()
    return weights.parent if inside else None


def _first_free(parent: Path, stem: str) -> Path:
    """Makes `parent/stem`, or with the next free number behind it where that exists."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [re.fullmatch(rf"{stem}(\d*)", entry.name) for entry in parent.iterdir()]
    number = max((int(match[1] or 1) for match in taken if match), default=0) + 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run started at the same moment
            number += 1


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps({name: _json_value(value) for name, value in record.items()}) + "\n"


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    return value

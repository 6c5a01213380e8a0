"""How fast the work can be at best: bytes, operations and exponentials over published peaks."""

from collections.abc import Iterator
from typing import NamedTuple

from gpu.parts import attention
from gpu.parts.assignment import SHAPES
from gpu.setting import Setting
from gpu.targets import TARGETS
from matching_workloads import CLASSES, COCO_LIKE
from operations import Operation, matrix_operations

from .hardware import GPUS, Gpu

MODELS = ("detr_resnet50", "detr_resnet101", "detr_resnet50_dc5", "detr_resnet101_dc5")
SIZE = (800, 1066)
PROBLEMS = 208
SETS, QUERIES = 7, 300


class Work(NamedTuple):
    """One thing to do, by the name it has among the measurements.

    Attributes:
        what: as in `gpu.targets`.
        operations: that follow one another, each as slow as its bytes or its operations have it.
        exponentials: that must be taken, 0 where not counted.
        images: that are worked on, 0 where it is not about images.
    """

    what: str
    operations: tuple[Operation, ...]
    exponentials: float = 0.0
    images: int = 0

    def seconds(self, gpu: Gpu) -> float:
        """Without a launch, a wait, or a partly filled last wave of blocks."""
        chained = sum(
            max(each.bytes / gpu.bandwidth, each.flops / gpu.half_rate) for each in self.operations
        )
        return max(chained, self.exponentials / gpu.exponentials)


def works() -> Iterator[Work]:
    """What has a target, and attention in all forms that are measured."""
    images, targets = len(COCO_LIKE), sum(COCO_LIKE)
    read = 4 * SETS * images * QUERIES * (CLASSES + 1 + 4) + targets * (8 + 16)
    yield Work(
        f"set_matching, {SETS} sets x {images} images x {QUERIES} queries",
        (Operation(0, read + 8 * SETS * targets),),
    )
    for rows, columns in SHAPES:
        moved = PROBLEMS * (4 * rows * columns + 8 * rows)
        yield Work(f"linear_assignment, {PROBLEMS} x {rows} x {columns}", (Operation(0, moved),))
    for workload in attention.workloads(Setting("cuda")):
        scores = workload.flops() / (2 * workload.products * attention.HEAD_SIZE)
        yield Work(
            str(workload),
            (Operation(workload.flops(), workload.bytes()),),
            # Backward takes them again from the scores, once for queries and once for keys.
            exponentials=scores * (3 if workload.backward else 1),
        )
    for name in MODELS:
        for batch in (1, 32):
            operations = matrix_operations(name, (batch, 3, *SIZE))
            what = f"{name}, {batch} x {SIZE[0]} x {SIZE[1]}"
            yield Work(what, operations, images=batch)


def table(listed: list[Work]) -> str:
    """Floors of each work on each GPU, and what the target leaves above that of the first."""
    first = GPUS[0]
    names = " | ".join(f"{gpu.name}, ms" for gpu in GPUS)
    lines = [
        f"| what | GB | GFLOP | 10^9 exp | {names} | target, ms | target over floor, {first.name} |",
        "| --- | --: | --: | --: |" + " --: |" * (len(GPUS) + 2),
    ]
    for work in listed:
        floors = [1000 * work.seconds(gpu) for gpu in GPUS]
        goal = target_ms(work)
        cells = [
            work.what,
            f"{sum(each.bytes for each in work.operations) / 1e9:.4g}",
            f"{sum(each.flops for each in work.operations) / 1e9:.4g}",
            f"{work.exponentials / 1e9:.3g}" if work.exponentials else "",
            *(f"{floor:.4g}" for floor in floors),
            f"{goal:.4g}" if goal else "",
            f"{goal / floors[0]:.2f}" if goal else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def target_ms(work: Work) -> float | None:
    """The target of a work as milliseconds, whatever figure it is a limit of."""
    target = TARGETS.get(work.what)
    if target is None:
        return None
    if target.figure == "images/s":
        return 1000 * work.images / target.limit
    if target.figure == "TFLOP/s":
        return sum(each.flops for each in work.operations) / target.limit / 1e9
    return target.limit


def hardware_table() -> str:
    """The published peaks that the floors stand on."""
    lines = [
        "| GPU | memory, TB/s | 16 bits, TFLOP/s | multiprocessors | clock, GHz | 10^12 exp/s "
        "| source |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for gpu in GPUS:
        cells = [f"{gpu.bandwidth / 1e12:g}", f"{gpu.half_rate / 1e12:g}"]
        cells += [
            str(gpu.multiprocessors),
            f"{gpu.clock / 1e9:g}",
            f"{gpu.exponentials / 1e12:.2f}",
        ]
        lines.append("| " + " | ".join([gpu.name, *cells, gpu.source]) + " |")
    return "\n".join(lines)

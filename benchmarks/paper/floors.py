"""How fast the work can be at best: bytes, operations and exponentials over published peaks."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from gpu.parts import attention, training
from gpu.parts.assignment import PROBLEMS, SHAPES
from gpu.parts.inference import MODELS, SIZE
from gpu.parts.matching import QUERIES, SETS
from gpu.setting import Setting
from gpu.targets import TARGETS
from matching_workloads import CLASSES, COCO_LIKE

from detr_fast import build_model
from detr_fast.models.work import MatrixProduct, Work, count_work

from .hardware import GPUS, Gpu


class Task(NamedTuple):
    """One thing to do, by the name it has among the measurements.

    Attributes:
        what: as in `gpu.targets`.
        work: products that follow one another, each as slow as its bytes or its operations have it.
        itemsize: bytes of a number.
        exponentials: that must be taken, 0 where not counted.
        images: that are worked on, 0 where it is not about images.
    """

    what: str
    work: Work
    itemsize: int = 1
    exponentials: float = 0.0
    images: int = 0

    @property
    def bytes(self) -> float:
        """Read and written."""
        return self.itemsize * sum(product.elements for product in self.work.products)

    def seconds(self, gpu: Gpu) -> float:
        """Without a launch, a wait, or a partly filled last wave of blocks."""
        chained = self.work.floor(gpu.half_rate, gpu.bandwidth, self.itemsize)
        return max(chained, self.exponentials / gpu.exponentials)


def tasks() -> Iterator[Task]:
    """What has a target, and attention in all forms that are measured."""
    images, targets = len(COCO_LIKE), sum(COCO_LIKE)
    read = 4 * SETS * images * QUERIES * (CLASSES + 1 + 4) + targets * (8 + 16)
    name = f"set_matching, {SETS} sets x {images} images x {QUERIES} queries"
    yield Task(name, _one(0, read + 8 * SETS * targets))
    for rows, columns in SHAPES:
        moved = PROBLEMS * (4 * rows * columns + 8 * rows)
        yield Task(f"linear_assignment, {PROBLEMS} x {rows} x {columns}", _one(0, moved))
    for workload in attention.workloads(Setting("cuda")):
        scores = workload.flops() / (2 * workload.products * attention.HEAD_SIZE)
        # Backward takes them again from the scores, once for queries and once for keys.
        exponentials = scores * (3 if workload.backward else 1)
        yield Task(str(workload), _one(workload.flops(), workload.bytes()), 1, exponentials)
    for name in MODELS:
        with torch.device("meta"):
            model = build_model(name, aux_loss=False).eval()
        for batch in (1, 32):
            work = count_work(model, (batch, 3, *SIZE))
            yield Task(f"{name}, {batch} x {SIZE[0]} x {SIZE[1]}", work, 2, images=batch)
            if (name, batch) == ("detr_resnet50", 32):
                # Forward, and the gradients of activations and of weights.
                passes = Work(training.PASSES * work.products)
                yield Task(f"training {name}, bf16, {batch} images", passes, 2, images=batch)


def _one(flops: float, moved: float) -> Work:
    return Work((MatrixProduct(int(flops), int(moved)),))


def table(listed: list[Task]) -> str:
    """Floors of each task on each GPU, and what the target leaves above that of the first."""
    first = GPUS[0]
    names = " | ".join(f"{gpu.name}, ms" for gpu in GPUS)
    lines = [
        f"| what | GB | GFLOP | 10^9 exp | {names} | target, ms "
        f"| target over floor, {first.name} |",
        "| --- | --: | --: | --: |" + " --: |" * (len(GPUS) + 2),
    ]
    for task in listed:
        floors = [1000 * task.seconds(gpu) for gpu in GPUS]
        goal = target_ms(task)
        cells = [
            task.what,
            f"{task.bytes / 1e9:.4g}",
            f"{task.work.flops / 1e9:.4g}",
            f"{task.exponentials / 1e9:.3g}" if task.exponentials else "",
            *(f"{floor:.4g}" for floor in floors),
            f"{goal:.4g}" if goal else "",
            f"{goal / floors[0]:.2f}" if goal else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def target_ms(task: Task) -> float | None:
    """The target of a task as milliseconds, whatever figure it is a limit of."""
    target = TARGETS.get(task.what)
    if target is None:
        return None
    if target.figure == "images/s":
        return 1000 * task.images / target.limit
    if target.figure == "TFLOP/s":
        return task.work.flops / target.limit / 1e9
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

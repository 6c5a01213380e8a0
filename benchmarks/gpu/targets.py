"""What the measurements are to show, on one H200, in float16 unless the work says otherwise."""

from typing import NamedTuple

HARDWARE = "NVIDIA H200"


class Target(NamedTuple):
    """A limit of one figure of a row; `at_least` says on which side of it to be."""

    figure: str
    limit: float
    at_least: bool = False


TARGETS = {
    "set_matching, 7 sets x 16 images x 300 queries": Target("ms", 0.025),
    "linear_assignment, 208 x 300 x 100": Target("ms", 0.10),
    "linear_assignment, 208 x 300 x 300": Target("ms", 1.3),
    "linear_assignment, 208 x 300 x 600": Target("ms", 0.45),
    "attention, 8 x 8 heads x 3350 x 3350 x 32": Target("TFLOP/s", 250, at_least=True),
    "detr_resnet50, 1 x 800 x 1066": Target("ms", 1.5),
    "detr_resnet101, 1 x 800 x 1066": Target("ms", 2.0),
    "detr_resnet50_dc5, 1 x 800 x 1066": Target("ms", 2.2),
    "detr_resnet101_dc5, 1 x 800 x 1066": Target("ms", 2.8),
    "detr_resnet50, 32 x 800 x 1066": Target("images/s", 1500, at_least=True),
    "detr_resnet101, 32 x 800 x 1066": Target("images/s", 950, at_least=True),
    "detr_resnet50_dc5, 32 x 800 x 1066": Target("images/s", 750, at_least=True),
    "detr_resnet101_dc5, 32 x 800 x 1066": Target("images/s", 580, at_least=True),
    "detr_resnet50, exact batches, 32 mixed images": Target("slower %", 2.0),
    "training detr_resnet50, bf16, 32 images": Target("images/s", 250, at_least=True),
    "matcher and criterion of a step, 32 images": Target("share %", 5.0),
}


def verdict(what: str, figures: dict[str, float]) -> str:
    """Whether the figures meet the target of their work, and by what factor; "" without one."""
    target = TARGETS.get(what)
    if target is None or target.figure not in figures:
        return ""
    figure = figures[target.figure]
    ratio = figure / target.limit if target.at_least else target.limit / figure
    asked = f"{'at least' if target.at_least else 'at most'} {target.limit:g} {target.figure}"
    return f"{asked}: {'met' if ratio >= 1 else 'missed'}, {ratio:.2f} of it"

"""Losses of all decoder layers with their gradients, matching included."""

from functools import partial

import criterion_workloads as workloads
import torch
from matching_workloads import COCO_LIKE

from detr_fast.training.targets import pack_targets

from ..part import OURS, Case, Measurement
from ..setting import Setting
from ..timing import captured, seconds_of

# Room for targets of an image in a graph.
CAPACITY = 40


def cases(setting: Setting) -> list[Case]:
    images, queries = setting.size((32, 100), (3, 20))
    what = (
        f"criterion and gradients, {workloads.LAYERS} layers x {images} images x {queries} queries"
    )
    return [
        Case(what, who, partial(measure, setting, (COCO_LIKE * images)[:images], queries))
        for who, measure in WHO.items()
    ]


def _measure(setting: Setting, counts, queries: int, implementation, graph=False) -> Measurement:
    layers, targets = workloads.workload(counts, queries, setting.device)
    losses = implementation(layers, targets)
    _compare(losses(), layers, targets)
    if graph:
        packed = pack_targets(targets).padded(CAPACITY).to(setting.device)
        losses = implementation(layers, packed)
        _compare(losses(), layers, targets)

    def run():
        workloads.step(layers, losses)

    seconds = seconds_of(captured(run, setting.device) if graph else run, setting.device)
    predictions = sum(leaf.nbytes for layer in layers for leaf in layer)
    # Predictions are read, and gradients of their size written.
    return Measurement(seconds, bytes=2 * predictions, images=len(counts))


def _compare(found, layers, targets) -> None:
    """Against our own losses on the CPU, in float64."""
    on_cpu = [tuple(leaf.detach().cpu().double() for leaf in layer) for layer in layers]
    wanted = [
        {k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in target.items()}
        for target in targets
    ]
    expected = workloads.detr_fast(on_cpu, wanted)()
    for name in workloads.WEIGHTS:
        torch.testing.assert_close(
            found[name].cpu().double(), expected[name], rtol=1e-3, atol=1e-4, check_dtype=False
        )


WHO = {
    OURS: partial(_measure, implementation=workloads.detr_fast, graph=True),
    f"{OURS}, not captured": partial(_measure, implementation=workloads.detr_fast),
    "transformers": partial(_measure, implementation=workloads.transformers),
}

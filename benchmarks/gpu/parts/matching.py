"""set_matching of all decoder layers of a batch, the answers compared with the CPU's first."""

from functools import partial

import torch
from matching_workloads import COCO_LIKE, matching, padded_scipy
from matching_workloads import transformers as transformers_matcher

from detr_fast.ops.set_matching import set_matching
from detr_fast.reference.set_matching import set_matching as reference
from detr_fast.training.targets import pack_targets

from ..part import OURS, Case, Measurement
from ..setting import Setting
from ..timing import captured, seconds_of

SETS, QUERIES = 7, 300


def cases(setting: Setting) -> list[Case]:
    sets, queries, dense = setting.size((SETS, QUERIES, 100), (2, 20, 10))
    counts = setting.size(COCO_LIKE, COCO_LIKE[:3])
    name = f"set_matching, {sets} sets x {len(counts)} images x {queries} queries"
    listed = []
    for what, targets in ((name, counts), (f"{name}, {dense} targets", [dense] * len(counts))):
        for who, measure in WHO.items():
            listed.append(Case(what, who, partial(measure, setting, sets, list(targets), queries)))
    return listed


def _problem(setting: Setting, sets: int, counts: list[int], queries: int):
    """Outputs of one layer and targets on the device, and set_matching's arguments."""
    outputs, targets = matching(counts, queries, trained=True)
    packed = pack_targets(targets)
    layers = [outputs[name].expand(sets, -1, -1, -1) for name in ("pred_logits", "pred_boxes")]
    arguments = (*(layer.contiguous() for layer in layers), packed.labels, packed.boxes)
    on_device = {name: value.to(setting.device) for name, value in outputs.items()}
    moved = [{name: value.to(setting.device) for name, value in t.items()} for t in targets]
    return on_device, moved, arguments, packed.offsets


def _ours(
    setting: Setting, sets: int, counts: list[int], queries: int, operation, graph: bool
) -> Measurement:
    _, _, arguments, offsets = _problem(setting, sets, counts, queries)
    given = (*(tensor.to(setting.device) for tensor in arguments), offsets)
    expected = set_matching(*arguments, offsets)
    found = operation(*given)
    if not torch.equal(found.cpu(), expected):
        raise RuntimeError("other matches than on the CPU")

    def run():
        return operation(*given)

    seconds = seconds_of(captured(run, setting.device) if graph else run, setting.device)
    return Measurement(seconds, bytes=sum(x.nbytes for x in (*given, found)))


def _peer(
    setting: Setting, sets: int, counts: list[int], queries: int, implementation
) -> Measurement:
    outputs, targets, _, _ = _problem(setting, sets, counts, queries)
    match = implementation(outputs, targets)
    # One layer after another, as it is called in training.
    return Measurement(seconds_of(lambda: [match() for _ in range(sets)], setting.device))


WHO = {
    OURS: partial(_ours, operation=set_matching, graph=True),
    f"{OURS}, not captured": partial(_ours, operation=set_matching, graph=False),
    "the reference": partial(_ours, operation=reference, graph=False),
    "transformers": partial(_peer, implementation=transformers_matcher),
    "padded costs, a copy and a loop over SciPy": partial(_peer, implementation=padded_scipy),
}

"""Criterion, forward and backward, against that of transformers.

    python -m pytest benchmarks/bench_criterion.py --benchmark-json=criterion.json
    python benchmarks/report.py criterion.json --out benchmarks/results/MACHINE

Six decoder layers, 91 classes and the target counts of real COCO images. The losses of both are
compared before anything is timed. Threads as OMP_NUM_THREADS says.
"""

import pytest
import torch
from matching_workloads import CLASSES, COSTS, boxes, coco_counts
from matching_workloads import targets as targets_of

from detr_fast.training.criterion import SetCriterion, auxiliary_weights
from detr_fast.training.matcher import HungarianMatcher

LAYERS = 6
LOSSES = ["labels", "boxes", "cardinality"]
WEIGHTS = auxiliary_weights({"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}, LAYERS)


def workload(images, queries):
    """Predictions as leaves, one pair for each layer, and targets."""
    generator = torch.Generator().manual_seed(0)

    layers = [
        (
            torch.randn(images, queries, CLASSES + 1, generator=generator).requires_grad_(),
            boxes(generator, images, queries).requires_grad_(),
        )
        for _ in range(LAYERS)
    ]
    targets = targets_of(generator, coco_counts(images))
    return layers, targets


def detr_fast(layers, targets):
    criterion = SetCriterion(CLASSES, HungarianMatcher(*COSTS), WEIGHTS, 0.1, LOSSES)
    named = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in layers]
    outputs = named[-1] | {"aux_outputs": named[:-1]}
    return lambda: criterion(outputs, targets)


def transformers(layers, targets):
    theirs = pytest.importorskip("transformers.loss.loss_for_object_detection")
    criterion = theirs.ImageLoss(theirs.HungarianMatcher(*COSTS), CLASSES, 0.1, LOSSES)
    named = [{"logits": logits, "pred_boxes": boxes} for logits, boxes in layers]
    outputs = named[-1] | {"auxiliary_outputs": named[:-1]}
    renamed = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    return lambda: criterion(outputs, renamed)


@pytest.mark.parametrize("implementation", [detr_fast, transformers], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("images", "queries"), [(2, 100), (8, 100), (32, 100), (8, 300)])
def test_criterion(benchmark, implementation, images, queries):
    layers, targets = workload(images, queries)
    ours, theirs = detr_fast(layers, targets)(), transformers(layers, targets)()
    for name in WEIGHTS:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    losses = implementation(layers, targets)

    def clear():
        for leaf in (leaf for layer in layers for leaf in layer):
            leaf.grad = None

    def step():
        computed = losses()
        sum(computed[name] * weight for name, weight in WEIGHTS.items()).backward()

    benchmark.extra_info |= {
        "subject": implementation.__name__,
        "batch": images,
        "queries": queries,
        "targets": sum(len(target["labels"]) for target in targets),
    }
    benchmark.pedantic(step, setup=clear, rounds=9, warmup_rounds=2)

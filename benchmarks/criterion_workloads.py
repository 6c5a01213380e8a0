"""Workloads of the benchmarks of the criterion, and the criteria that they compare."""

import torch
from matching_workloads import CLASSES, COSTS, boxes
from matching_workloads import targets as targets_of

from detr_fast.training.criterion import SetCriterion, auxiliary_weights
from detr_fast.training.matcher import HungarianMatcher

LAYERS = 6
LOSSES = ["labels", "boxes", "cardinality"]
WEIGHTS = auxiliary_weights({"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}, LAYERS)


def workload(counts: list[int], queries: int, device: str = "cpu"):
    """Predictions as leaves, one pair for each layer, and targets, `counts` of them an image."""
    generator = torch.Generator().manual_seed(0)
    images = len(counts)
    layers = [
        (
            torch.randn(images, queries, CLASSES + 1, generator=generator)
            .to(device)
            .requires_grad_(),
            boxes(generator, images, queries).to(device).requires_grad_(),
        )
        for _ in range(LAYERS)
    ]
    wanted = [
        {name: value.to(device) for name, value in target.items()}
        for target in targets_of(generator, counts)
    ]
    return layers, wanted


def detr_fast(layers, targets):
    """`targets` may be packed."""
    criterion = SetCriterion(CLASSES, HungarianMatcher(*COSTS), WEIGHTS, 0.1, LOSSES)
    criterion.to(layers[0][0].device)
    named = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in layers]
    outputs = named[-1] | {"aux_outputs": named[:-1]}
    return lambda: criterion(outputs, targets)


def transformers(layers, targets):
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    criterion = ImageLoss(HungarianMatcher(*COSTS), CLASSES, 0.1, LOSSES)
    criterion.to(layers[0][0].device)
    named = [{"logits": logits, "pred_boxes": boxes} for logits, boxes in layers]
    outputs = named[-1] | {"auxiliary_outputs": named[:-1]}
    renamed = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    return lambda: criterion(outputs, renamed)


def step(layers, losses) -> None:
    """Losses and their gradients."""
    for leaf in (leaf for layer in layers for leaf in layer):
        leaf.grad = None
    computed = losses()
    sum(computed[name] * weight for name, weight in WEIGHTS.items()).backward()

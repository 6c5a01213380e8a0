"""Matching of predictions with targets: cost and assignment in one operation."""

import torch
from torch import Tensor

from ..reference import set_matching as reference
from ._library import define
from .matching_cost import ARGUMENTS, check_matching


def set_matching(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    offsets: Tensor,
    *,
    class_cost: str = "softmax",
    weight_class: float = 1.0,
    weight_bbox: float = 1.0,
    weight_giou: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-8,
    non_finite_cost: float = 1e8,
) -> Tensor:
    """Matches every target with a query of its image, for all prediction sets and images at once.

    The costs are those of `matching_cost`, the assignment that of `linear_assignment`, ties
    included; only the costs of one image at a time are held in memory. Not differentiable.

    Args:
        logits, boxes, labels, target_boxes, offsets, class_cost, weight_class, weight_bbox,
        weight_giou, alpha, gamma, eps: as in `matching_cost`.
        non_finite_cost: stands for every cost that is NaN or infinite, so that matching always
            completes and a broken prediction is chosen last. Images do not influence each other.

    Returns:
        (S, T) int64 on the device of `logits`: the query of every target, within its image; -1 for
        a target left over because its image has more targets than queries.

    Raises:
        TypeError, ValueError, IndexError: as in `matching_cost`; ValueError also if
            `non_finite_cost` is not finite.
    """
    check_matching(logits, boxes, labels, target_boxes, offsets, class_cost)
    if not -_LARGEST <= non_finite_cost <= _LARGEST:
        raise ValueError(f"non_finite_cost is {non_finite_cost}: use a finite float32 number.")
    return _operation(
        logits.detach(),
        boxes.detach(),
        labels,
        target_boxes.detach(),
        offsets,
        class_cost=class_cost,
        weight_class=weight_class,
        weight_bbox=weight_bbox,
        weight_giou=weight_giou,
        alpha=alpha,
        gamma=gamma,
        eps=eps,
        non_finite_cost=non_finite_cost,
    )


_LARGEST = torch.finfo(torch.float32).max


def _fake(logits: Tensor, boxes: Tensor, labels: Tensor, *_, **__) -> Tensor:
    return logits.new_empty((logits.shape[0], labels.shape[0]), dtype=torch.int64)


_operation = define(
    f"set_matching({ARGUMENTS}, float non_finite_cost=1e8) -> Tensor",
    reference.set_matching,
    _fake,
)

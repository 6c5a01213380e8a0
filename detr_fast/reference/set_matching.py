"""Matching of predictions with targets: the cost, then an assignment for every set and image."""

import itertools

import torch
from torch import Tensor

from .assignment import linear_assignment
from .matching_cost import matching_cost


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
    """Matches every target with a query of its image (Carion et al., ECCV 2020, section 3.1).

    Args:
        logits, boxes, labels, target_boxes, offsets, class_cost, weight_class, weight_bbox,
        weight_giou, alpha, gamma, eps: as in `matching_cost`.
        non_finite_cost: stands for every cost that is NaN or infinite, so that matching completes.

    Returns:
        (S, T) int64: the query of every target, -1 for a target left over because its image has
        more targets than queries.

    Raises:
        ValueError, IndexError: as in `matching_cost`.
    """
    cost = matching_cost(
        logits,
        boxes,
        labels,
        target_boxes,
        offsets,
        class_cost=class_cost,
        weight_class=weight_class,
        weight_bbox=weight_bbox,
        weight_giou=weight_giou,
        alpha=alpha,
        gamma=gamma,
        eps=eps,
    )
    cost = torch.where(cost.isfinite(), cost, non_finite_cost)
    bounds = offsets.tolist()
    queries = torch.empty(cost.shape[:2], dtype=torch.int64, device=cost.device)
    for low, high in itertools.pairwise(bounds):
        queries[:, low:high] = linear_assignment(cost[:, low:high])
    return queries

"""Matching of predictions with targets: the cost, then an assignment for every set and image."""

import math

import torch
from torch import Tensor

from .assignment import linear_assignment
from .matching_cost import matching_cost, target_ranges

# Where costs that are not finite forbid their pair, so do costs beyond this size: four times a sum
# of 2**30 costs below it, which is as many as there can be, is finite in float32.
LARGEST_ALLOWED = 2.0**90


def set_matching(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    offsets: Tensor,
    *,
    counts: Tensor | None = None,
    extra_cost: Tensor | None = None,
    class_cost: str = "softmax",
    weight_class: float = 1.0,
    weight_bbox: float = 1.0,
    weight_giou: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-8,
    groups: int = 1,
    non_finite_cost: float = 1e8,
) -> Tensor:
    """Matches every target with a query of its image (Carion et al., ECCV 2020, section 3.1).

    The arguments and the result (S * groups, T) are those of the operation, `ops.set_matching`,
    which checks shapes, dtypes and devices.

    Raises:
        ValueError, IndexError: as in `matching_cost`.
    """
    cost = matching_cost(
        logits,
        boxes,
        labels,
        target_boxes,
        offsets,
        counts=counts,
        extra_cost=extra_cost,
        class_cost=class_cost,
        weight_class=weight_class,
        weight_bbox=weight_bbox,
        weight_giou=weight_giou,
        alpha=alpha,
        gamma=gamma,
        eps=eps,
    )
    sets, targets, num_queries = cost.shape
    in_group = num_queries // groups
    matched = torch.full((sets, groups, targets), -1, dtype=torch.int64, device=cost.device)
    for start, stop in target_ranges(offsets, counts, targets):
        for g in range(groups):
            first = g * in_group
            own = cost[:, start:stop, first : first + in_group]
            matched[:, g, start:stop] = _assign(own, first, non_finite_cost)
    return matched.flatten(0, 1)


def _assign(cost: Tensor, first_query: int, non_finite_cost: float) -> Tensor:
    """Queries (S, M) of the problems (S, M, Q); `first_query` is that of column 0."""
    sets, targets, queries = cost.shape
    if 0 in cost.shape:
        return cost.new_full((sets, targets), -1, dtype=torch.int64)
    cost = cost.double()
    forbids = non_finite_cost == math.inf
    allowed = cost.isfinite() & ((cost.abs() <= LARGEST_ALLOWED) | (not forbids))
    if forbids:
        # So dear that every pair fewer of them is worth any change of the others.
        largest = torch.where(allowed, cost.abs(), 0).amax((1, 2), keepdim=True)
        stand_in = torch.where(largest > 0, 4 * min(targets, queries) * largest, 1)
    else:
        stand_in = torch.tensor(non_finite_cost, dtype=torch.float64, device=cost.device)
    column = linear_assignment(torch.where(allowed, cost, stand_in))
    if forbids:
        taken = allowed.gather(2, column.clamp(min=0)[..., None])[..., 0]
        column = torch.where(taken, column, -1)
    return torch.where(column >= 0, column + first_query, -1)

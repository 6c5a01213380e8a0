"""Matching of predictions with targets: cost and assignment in one operation."""

import math

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
    """Matches every target with a query of its image, for all prediction sets and images at once.

    The costs are those of `matching_cost`, the assignment that of `linear_assignment`, ties
    included; only the costs of one image at a time are held in memory. Each set, group and image
    is a problem of its own, and none influences another. Not differentiable.

    Costs may fail to be finite: of predictions that are not, and of the caller's `extra_cost`.
    What `non_finite_cost` says happens to such pairs:

    * a finite number stands for their cost. A large one, as the default, has broken predictions
      chosen last, and every target a query as far as there are enough.
    * +inf forbids them, and with them costs beyond 2**90 in size. As many targets as possible have
      a query; among the matchings of that many pairs the cheapest is taken. A target whose pairs
      are all forbidden is among those without a query.
    * NaN leaves all targets of the problem unmatched, for a caller who wants to raise an error.

    Args:
        logits, boxes, labels, target_boxes, offsets, counts, extra_cost, class_cost, weight_class,
        weight_bbox, weight_giou, alpha, gamma, eps: as in `matching_cost`.
        groups: the queries of an image are this many runs of equal length, and in each of them
            every target has a query (Chen et al., Group DETR, ICCV 2023).
        non_finite_cost: a finite number, +inf or NaN; see above.

    Returns:
        (S * groups, T) int64 on the device of `logits`: row `s * groups + g` has for set s the
        query of every target among those of group g, counted within the image, from 0 to Q - 1. It
        is -1 for a target left over because a group has fewer queries than its image targets, for
        what `non_finite_cost` leaves unmatched, and in the room behind `counts`.

    Raises:
        TypeError, ValueError, IndexError: as in `matching_cost`; ValueError also if the queries
            cannot be divided into `groups`, or `non_finite_cost` is not a float32 number.
    """
    check_matching(
        logits,
        boxes,
        labels,
        target_boxes,
        offsets,
        counts=counts,
        extra_cost=extra_cost,
        class_cost=class_cost,
        gamma=gamma,
        eps=eps,
    )
    if groups < 1 or logits.shape[2] % groups:
        raise ValueError(
            f"{logits.shape[2]} queries do not divide into {groups} groups of equal size."
        )
    if abs(non_finite_cost) > _LARGEST and non_finite_cost != math.inf:
        raise ValueError(
            f"non_finite_cost is {non_finite_cost}: use a finite float32 number, inf (such pairs "
            "are forbidden) or nan (their image stays unmatched)."
        )
    return _operation(
        logits.detach(),
        boxes.detach(),
        labels,
        target_boxes.detach(),
        offsets,
        counts=counts,
        extra_cost=None if extra_cost is None else extra_cost.detach(),
        class_cost=class_cost,
        weight_class=weight_class,
        weight_bbox=weight_bbox,
        weight_giou=weight_giou,
        alpha=alpha,
        gamma=gamma,
        eps=eps,
        groups=groups,
        non_finite_cost=non_finite_cost,
    )


_LARGEST = torch.finfo(torch.float32).max


def _fake(logits: Tensor, boxes: Tensor, labels: Tensor, *_, groups: int = 1, **__) -> Tensor:
    return logits.new_empty((logits.shape[0] * groups, labels.shape[0]), dtype=torch.int64)


_operation = define(
    f"set_matching({ARGUMENTS}, int groups=1, float non_finite_cost=1e8) -> Tensor",
    reference.set_matching,
    _fake,
)

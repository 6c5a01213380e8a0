"""Matching of one layer, from the targets of each image to the index lists of each image."""

from collections.abc import Sequence

from torch import Tensor

from ..reference import image_matching as reference
from ..reference.target_packing import regular as regular_targets
from ._library import define


def image_matching(
    logits: Tensor,
    boxes: Tensor,
    labels: Sequence[Tensor],
    target_boxes: Sequence[Tensor],
    num_classes: int,
    class_cost: str = "softmax",
    weight_class: float = 1.0,
    weight_bbox: float = 1.0,
    weight_giou: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-8,
    groups: int = 1,
    non_finite_cost: float = 1e8,
) -> tuple[list[Tensor], list[Tensor]]:
    """Does `target_packing`, `set_matching` and `sorted_matches` in one call.

    This is for the usual case, at every step of a training on a CPU: with few images, calls from
    Python take longer than the matching. Where anything is unusual it does nothing, and whoever
    wants an answer or a sentence takes the three operations.

    Args:
        logits: (B, Q, C) floating, on the CPU, not requiring a gradient.
        boxes: (B, Q, 4) the same.
        labels, target_boxes, num_classes: as in `target_packing`.
        class_cost, weight_class, weight_bbox, weight_giou, alpha, gamma, eps, groups: as in
            `set_matching`, which checks them; nothing here does.
        non_finite_cost: as in `set_matching`, finite.

    Returns:
        queries and targets, for each image (groups * n,) int64: the queries ascend, and query
        `queries[b][k]` is matched with target `targets[b][k]` of image b. Two empty lists if there
        is no image, the targets are not sound, an image has more targets than a group queries, or a
        shape does not agree.
    """
    return _operation(
        logits,
        boxes,
        labels,
        target_boxes,
        num_classes,
        class_cost,
        weight_class,
        weight_bbox,
        weight_giou,
        alpha,
        gamma,
        eps,
        groups,
        non_finite_cost,
    )


def _fake(logits, boxes, labels, target_boxes, *options):
    groups = options[-2]
    if not reference.regular(logits, boxes, labels, groups):
        return [], []
    if not regular_targets(labels, target_boxes):
        return [], []
    lists = [[own.new_empty(groups * own.shape[0]) for own in labels] for _ in range(2)]
    return lists[0], lists[1]


_operation = define(
    "image_matching(Tensor logits, Tensor boxes, Tensor[] labels, Tensor[] target_boxes, "
    "int num_classes, str class_cost, float weight_class, float weight_bbox, float weight_giou, "
    "float alpha, float gamma, float eps, int groups, float non_finite_cost)"
    " -> (Tensor[] queries, Tensor[] targets)",
    reference.image_matching,
    _fake,
)

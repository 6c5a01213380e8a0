"""Matching of one layer from the targets of each image to the index lists of each image."""

from collections.abc import Sequence

from torch import Tensor

from .set_matching import set_matching
from .sorted_matches import sorted_matches
from .target_packing import target_packing


def image_matching(
    logits: Tensor,
    boxes: Tensor,
    labels: Sequence[Tensor],
    target_boxes: Sequence[Tensor],
    num_classes: int,
    class_cost: str,
    weight_class: float,
    weight_bbox: float,
    weight_giou: float,
    alpha: float,
    gamma: float,
    eps: float,
    groups: int,
    non_finite_cost: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """Packs, matches and sorts; see the operation for the arguments.

    Returns:
        For each image its queries, ascending, and its targets; two empty lists if anything about
        the arguments is unusual.
    """
    if not regular(logits, boxes, labels, groups):
        return [], []
    *packed, sound = target_packing(labels, target_boxes, num_classes)
    if not sound:
        return [], []
    matched = set_matching(
        logits[None],
        boxes[None],
        *packed,
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
    lengths = [groups * len(own) for own in labels]
    queries, places = sorted_matches(matched, packed[2])
    return (
        [own.clone() for own in queries.split(lengths)],
        [own.clone() for own in places.split(lengths)],
    )


def regular(logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], groups: int) -> bool:
    """Whether predictions and number of targets are as `image_matching` has them."""
    if logits.dim() != 3 or boxes.shape != (*logits.shape[:2], 4) or len(labels) != len(logits):
        return False
    queries = logits.shape[1]
    return (
        logits.is_floating_point()
        and boxes.is_floating_point()
        and queries % groups == 0
        and all(own.numel() <= queries // groups for own in labels)
    )

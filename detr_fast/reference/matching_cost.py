"""The matching cost of DETR and of its focal descendants, image by image."""

import itertools

import torch
from torch import Tensor

from .boxes import cxcywh_to_xyxy, generalized_iou


def matching_cost(
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
) -> Tensor:
    """Cost of giving a target to a query: class, L1 and generalised IoU, weighted.

    The class term is `-softmax(logits)[label]` (Carion et al., ECCV 2020, section 3.1) or, for
    "focal", `alpha (1 - p)^gamma (-log(p + eps)) - (1 - alpha) p^gamma (-log(1 - p + eps))` with
    `p = sigmoid(logits)[label]` (Zhu et al., Deformable DETR, ICLR 2021). L1 is taken on `cx, cy,
    w, h`, the IoU on corners.

    Args:
        logits: (S, B, Q, C) floating: S prediction sets (decoder layers), B images, Q queries.
        boxes: (S, B, Q, 4) predicted `cx, cy, w, h`.
        labels: (T,) int64, the targets of all images one after another.
        target_boxes: (T, 4) `cx, cy, w, h`.
        offsets: (B + 1,) int64 on the CPU: image b has the targets `offsets[b]:offsets[b + 1]`.
        class_cost: "softmax" or "focal".
        weight_class, weight_bbox, weight_giou: weights of the three terms.
        alpha, gamma, eps: of the focal class cost.

    Returns:
        (S, T, Q), float64 if `logits` are, else float32: entry [s, t, q] is the cost of target t
        with query q of the image that t belongs to.

    Raises:
        ValueError: `offsets` do not divide the targets among the images.
        IndexError: a label is negative or not smaller than C.
    """
    sets, images, queries, classes = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    bounds = offsets.tolist()
    _check_offsets(bounds, len(labels))
    if labels.device.type == "cpu":
        _check_labels(labels, classes)

    cost = logits.new_empty((sets, len(labels), queries), dtype=dtype)
    target_corners = cxcywh_to_xyxy(target_boxes.detach().to(dtype))
    for b in range(images):
        own = slice(bounds[b], bounds[b + 1])
        term = _class_term(logits[:, b].detach().to(dtype), class_cost, alpha, gamma, eps)
        class_term = term[:, :, labels[own].long()].transpose(1, 2)
        predicted = boxes[:, b, None].detach().to(dtype)
        distance = predicted - target_boxes[own, None].detach().to(dtype)
        overlap = generalized_iou(cxcywh_to_xyxy(predicted), target_corners[own, None])
        cost[:, own] = (
            weight_bbox * distance.abs().sum(dim=-1)
            + weight_class * class_term
            - weight_giou * overlap
        )
    return cost


def _class_term(logits: Tensor, kind: str, alpha: float, gamma: float, eps: float) -> Tensor:
    if kind == "softmax":
        return -logits.softmax(dim=-1)
    # 1 - p as a sigmoid of its own: the difference would have no digit left where p is close to 1.
    p, not_p = logits.sigmoid(), (-logits).sigmoid()
    positive = alpha * not_p**gamma * -(p + eps).log()
    negative = (1 - alpha) * p**gamma * -(not_p + eps).log()
    return positive - negative


def _check_offsets(bounds: list[int], targets: int) -> None:
    ascending = all(low <= high for low, high in itertools.pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != targets or not ascending:
        raise ValueError(
            f"offsets are {bounds}, but must ascend from 0 to the number of targets, {targets}."
        )


def _check_labels(labels: Tensor, classes: int) -> None:
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        t = int(outside[0])
        raise IndexError(
            f"labels[{t}] is {int(labels[t])}, but the logits have {classes} classes: labels must "
            f"be in [0, {classes - 1}]."
        )

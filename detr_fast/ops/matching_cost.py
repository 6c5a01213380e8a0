"""The cost of matching each target with each query of its image."""

import torch
from torch import Tensor

from ..reference import matching_cost as reference
from ._library import check_floating, define

CLASS_COSTS = ("softmax", "focal")

# What matching_cost and set_matching have in common: the predictions, the targets and the weights.
ARGUMENTS = (
    "Tensor logits, Tensor boxes, Tensor labels, Tensor target_boxes, Tensor offsets, *, "
    'str class_cost="softmax", float weight_class=1.0, float weight_bbox=1.0, '
    "float weight_giou=1.0, float alpha=0.25, float gamma=2.0, float eps=1e-8"
)


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
    w, h`, the generalised IoU (Rezatofighi et al., CVPR 2019) on corners. Only the pairs within an
    image are computed. Not differentiable.

    Args:
        logits: (S, B, Q, C) floating: S prediction sets (decoder layers), B images, Q queries.
        boxes: (S, B, Q, 4) floating, predicted `cx, cy, w, h`.
        labels: (T,) int64, the targets of all images one after another.
        target_boxes: (T, 4) floating, `cx, cy, w, h`.
        offsets: (B + 1,) int64 on the CPU: image b has the targets `offsets[b]:offsets[b + 1]`.
        class_cost: "softmax" or "focal".
        weight_class, weight_bbox, weight_giou: weights of the three terms.
        alpha, gamma, eps: of the focal class cost.

    Returns:
        (S, T, Q) on the device of `logits`, float64 if they are, else computed in float32 whatever
        the inputs: entry [s, t, q] is the cost of target t with query q of t's own image.

    Raises:
        TypeError: an argument has an unsupported dtype.
        ValueError: shapes, devices or offsets do not agree, or `class_cost` is unknown.
        IndexError: a label is negative or not smaller than C (on the CPU, where it can be seen
            without waiting for a device).
    """
    check_matching(logits, boxes, labels, target_boxes, offsets, class_cost)
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
    )


def check_matching(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    offsets: Tensor,
    class_cost: str,
) -> None:
    """Raises a sentence about the first argument that does not fit the others."""
    check_floating("logits", logits)
    check_floating("boxes", boxes)
    check_floating("target_boxes", target_boxes)
    if labels.dtype != torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}: use int64.")
    if logits.dim() != 4 or logits.shape[3] == 0:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}: use (S, B, Q, C) with at least one class "
            "(logits[None] for a single prediction set)."
        )
    if boxes.dim() != 4 or boxes.shape[:3] != logits.shape[:3] or boxes.shape[3] != 4:
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)}, but the logits {tuple(logits.shape)} need "
            f"{(*logits.shape[:3], 4)}."
        )
    if labels.dim() != 1:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}: use (T,), the targets of all images one "
            "after another."
        )
    if target_boxes.dim() != 2 or target_boxes.shape[0] != labels.shape[0]:
        raise ValueError(
            f"target_boxes has shape {tuple(target_boxes.shape)}, but {labels.shape[0]} labels "
            f"need {(labels.shape[0], 4)}."
        )
    if target_boxes.shape[1] != 4:
        raise ValueError(
            f"target_boxes has shape {tuple(target_boxes.shape)}: use (T, 4), cx, cy, w and h."
        )
    if offsets.dtype != torch.int64 or offsets.device.type != "cpu":
        raise ValueError(
            f"offsets is {offsets.dtype} on {offsets.device}: use int64 on the CPU, where the "
            "number of targets is known without waiting for a device."
        )
    if offsets.dim() != 1 or offsets.shape[0] != logits.shape[1] + 1:
        raise ValueError(
            f"offsets has shape {tuple(offsets.shape)}, but {logits.shape[1]} images need "
            f"{(logits.shape[1] + 1,)}: where the targets of each image begin, and the end."
        )
    if not (logits.device == boxes.device == labels.device == target_boxes.device):
        raise ValueError(
            f"logits are on {logits.device}, boxes on {boxes.device}, labels on {labels.device} "
            f"and target_boxes on {target_boxes.device}: move them to one device."
        )
    if class_cost not in CLASS_COSTS:
        raise ValueError(f"class_cost is {class_cost!r}: use one of {', '.join(CLASS_COSTS)}.")


def _fake(logits: Tensor, boxes: Tensor, labels: Tensor, *_, **__) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sets, _images, queries, _classes = logits.shape
    return logits.new_empty((sets, labels.shape[0], queries), dtype=dtype)


_operation = define(f"matching_cost({ARGUMENTS}) -> Tensor", reference.matching_cost, _fake)

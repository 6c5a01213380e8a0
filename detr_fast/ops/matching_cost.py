"""The cost of matching each target with each query of its image."""

import torch
from torch import Tensor

from ..reference import matching_cost as reference
from ._library import check_floating, define

CLASS_COSTS = ("softmax", "focal")

# What matching_cost and set_matching have in common: the predictions, the targets and the weights.
ARGUMENTS = (
    "Tensor logits, Tensor boxes, Tensor labels, Tensor target_boxes, Tensor offsets, *, "
    "Tensor? counts=None, Tensor? extra_cost=None, "
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
    counts: Tensor | None = None,
    extra_cost: Tensor | None = None,
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
    `p = sigmoid(logits)[label]` (Zhu et al., Deformable DETR, ICLR 2021). With `eps` 0 the
    logarithms are computed as those of sigmoids, without loss however large the logits. L1 is
    taken on `cx, cy, w, h`, the generalised IoU (Rezatofighi et al., CVPR 2019) on corners. Only
    the pairs within an image are computed. Not differentiable.

    The compiled kernels compute float32 costs by the same operations in the same order on every
    device and with every instruction set, so they agree in every bit.

    Args:
        logits: (S, B, Q, C) floating: S prediction sets (decoder layers), B images, Q queries.
        boxes: (S, B, Q, 4) floating, predicted `cx, cy, w, h`.
        labels: (T,) int64, the targets of all images one after another.
        target_boxes: (T, 4) floating, `cx, cy, w, h`.
        offsets: (B + 1,) int64 on the CPU: image b has the targets `offsets[b]:offsets[b + 1]`.
        counts: (B,) int64 on any device, optional: image b has only the first `counts[b]` of these
            targets. The others are room for more, whose labels and boxes are never read, so that
            shapes can stay the same while the number of targets changes.
        extra_cost: (S, T, Q) floating, optional: added to the cost, in its dtype.
        class_cost: "softmax" or "focal".
        weight_class, weight_bbox, weight_giou: weights of the three terms.
        alpha, gamma, eps: of the focal class cost.

    Returns:
        (S, T, Q) on the device of `logits`, float64 if they are, else computed in float32 whatever
        the inputs: entry [s, t, q] is the cost of target t with query q of t's own image; 0 in the
        room.

    Raises:
        TypeError: an argument has an unsupported dtype.
        ValueError: shapes, devices or offsets do not agree, `class_cost` is unknown, or `gamma` or
            `eps` is negative. For predictions on the CPU, a count that is not within its image; a
            device takes the nearest that is.
        IndexError: for predictions on the CPU, a label that is negative or not smaller than C. On a
            device, where that cannot be seen without waiting, the costs of such a target are NaN.
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
    )


def check_matching(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    offsets: Tensor,
    *,
    counts: Tensor | None,
    extra_cost: Tensor | None,
    class_cost: str,
    gamma: float,
    eps: float,
) -> None:
    """Raises a sentence about the first argument that does not fit the others."""
    check_floating("logits", logits)
    check_floating("boxes", boxes)
    check_floating("target_boxes", target_boxes)
    if labels.dtype != torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}: use int64.")
    shape = logits.shape
    if len(shape) != 4 or shape[3] == 0:
        raise ValueError(
            f"logits has shape {tuple(shape)}: use (S, B, Q, C) with at least one class "
            "(logits[None] for a single prediction set)."
        )
    sets, images, queries, _classes = shape
    if boxes.shape != (sets, images, queries, 4):
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)}, but the logits {tuple(shape)} need "
            f"{(sets, images, queries, 4)}."
        )
    if labels.dim() != 1:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}: use (T,), the targets of all images one "
            "after another."
        )
    targets = labels.shape[0]
    if target_boxes.dim() != 2 or target_boxes.shape[0] != targets:
        raise ValueError(
            f"target_boxes has shape {tuple(target_boxes.shape)}, but {targets} labels need "
            f"{(targets, 4)}."
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
    if offsets.shape != (images + 1,):
        raise ValueError(
            f"offsets has shape {tuple(offsets.shape)}, but {images} images need {(images + 1,)}: "
            "where the targets of each image begin, and the end."
        )
    device = logits.device
    if not (device == boxes.device == labels.device == target_boxes.device):
        raise ValueError(
            f"logits are on {device}, boxes on {boxes.device}, labels on {labels.device} "
            f"and target_boxes on {target_boxes.device}: move them to one device."
        )
    if counts is not None and (counts.dtype != torch.int64 or counts.shape != (images,)):
        raise ValueError(
            f"counts is {counts.dtype} of shape {tuple(counts.shape)}: use int64 ({images},), the "
            "number of targets of each image."
        )
    if extra_cost is not None:
        check_floating("extra_cost", extra_cost)
        if extra_cost.shape != (sets, targets, queries) or extra_cost.device != device:
            raise ValueError(
                f"extra_cost has shape {tuple(extra_cost.shape)} on {extra_cost.device}: use "
                f"{(sets, targets, queries)} on {device}, a row for every target."
            )
    if class_cost not in CLASS_COSTS:
        raise ValueError(f"class_cost is {class_cost!r}: use one of {', '.join(CLASS_COSTS)}.")
    if not (gamma >= 0 and eps >= 0):
        raise ValueError(f"gamma is {gamma} and eps {eps}: use numbers that are not negative.")


def _fake(logits: Tensor, boxes: Tensor, labels: Tensor, *_, **__) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sets, _images, queries, _classes = logits.shape
    return logits.new_empty((sets, labels.shape[0], queries), dtype=dtype)


_operation = define(f"matching_cost({ARGUMENTS}) -> Tensor", reference.matching_cost, _fake)

"""The matching cost of DETR and of its focal descendants, image by image."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import cxcywh_to_xyxy, generalized_iou


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

    The terms, the arguments and the result (S, T, Q) are those of the operation,
    `ops.matching_cost`, which checks shapes, dtypes and devices.

    Raises:
        ValueError: `offsets` do not divide the targets among the images, or a count does not fit.
        IndexError: a label is negative or not smaller than C, and on the CPU; elsewhere the costs
            of such a target are NaN.
    """
    sets, _images, queries, classes = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    cost = logits.new_zeros((sets, len(labels), queries), dtype=dtype)
    for b, (start, stop) in enumerate(target_ranges(offsets, counts, len(labels))):
        own = slice(start, stop)
        if labels.device.type == "cpu":
            _check_labels(labels, own, classes)
        of_image = target_boxes[own, None].detach().to(dtype)
        predicted = boxes[:, b, None].detach().to(dtype)
        distance = (predicted - of_image).abs().sum(dim=-1)
        overlap = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(of_image))
        term = _class_term(logits[:, b].detach().to(dtype), class_cost, alpha, gamma, eps)
        known = (labels[own] >= 0) & (labels[own] < classes)
        class_term = term[:, :, labels[own].clamp(0, classes - 1)].transpose(1, 2)
        class_term = torch.where(known[:, None], class_term, torch.nan)
        cost[:, own] = weight_bbox * distance + weight_class * class_term - weight_giou * overlap
        if extra_cost is not None:
            cost[:, own] += extra_cost[:, own].detach().to(dtype)
    return cost


def target_ranges(offsets: Tensor, counts: Tensor | None, targets: int) -> list[tuple[int, int]]:
    """Where the targets of each image begin and end.

    Raises:
        ValueError: `offsets` do not ascend from 0 to `targets`, or a count is not within its image.
    """
    bounds = offsets.tolist()
    ascending = all(low <= high for low, high in itertools.pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != targets or not ascending:
        raise ValueError(
            f"offsets are {bounds}, but must ascend from 0 to the number of targets, {targets}."
        )
    if counts is None:
        return list(itertools.pairwise(bounds))
    ranges = []
    for b, count in enumerate(counts.tolist()):
        room = bounds[b + 1] - bounds[b]
        if not 0 <= count <= room:
            raise ValueError(
                f"counts[{b}] is {count}, but offsets leave image {b} room for {room} targets."
            )
        ranges.append((bounds[b], bounds[b] + count))
    return ranges


def _class_term(logits: Tensor, kind: str, alpha: float, gamma: float, eps: float) -> Tensor:
    if kind == "softmax":
        return -logits.softmax(dim=-1)
    # 1 - p as a sigmoid of its own: the difference would have no digit left where p is close to 1.
    p, not_p = logits.sigmoid(), (-logits).sigmoid()
    if eps == 0:
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    else:
        log_p, log_not_p = (p + eps).log(), (not_p + eps).log()
    return (1 - alpha) * p**gamma * log_not_p - alpha * not_p**gamma * log_p


def _check_labels(labels: Tensor, own: slice, classes: int) -> None:
    outside = ((labels[own] < 0) | (labels[own] >= classes)).nonzero()
    if len(outside):
        t = own.start + int(outside[0])
        raise IndexError(
            f"labels[{t}] is {int(labels[t])}, but the logits have {classes} classes: labels must "
            f"be in [0, {classes - 1}]."
        )

"""Boxes: conversion of corners and generalised intersection over union."""

import torch
from torch import Tensor

# Sides are limited to this length before they are multiplied, so that no area of finite boxes
# overflows float32: 2**62 squared, three times over, stays below 2**127.
MAX_SIDE = 2.0**62


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts centre, width and height to corners.

    Args:
        boxes: (..., 4) `cx, cy, w, h` in any unit and any floating dtype.

    Returns:
        (..., 4) `x0, y0, x1, y1` in the same unit.
    """
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes (Rezatofighi et al., CVPR 2019, Algorithm 1).

    Defined for every finite box and differentiable: sides are at least 0, the IoU of two empty
    boxes is 0, and the enclosing term is 0 where the enclosing box is empty.

    Args:
        a: (..., 4) `x0, y0, x1, y1`.
        b: (..., 4), broadcast against `a`.

    Returns:
        (...) values in [-1, 1].
    """
    lower_of_overlap = torch.maximum(a[..., :2], b[..., :2])
    upper_of_overlap = torch.minimum(a[..., 2:], b[..., 2:])
    lower_of_both = torch.minimum(a[..., :2], b[..., :2])
    upper_of_both = torch.maximum(a[..., 2:], b[..., 2:])

    overlap = _area(lower_of_overlap, upper_of_overlap)
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    enclosing = _area(lower_of_both, upper_of_both)
    return _ratio(overlap, union) - _ratio(enclosing - union, enclosing)


def _area(lower: Tensor, upper: Tensor) -> Tensor:
    width, height = (upper - lower).clamp(min=0, max=MAX_SIDE).unbind(dim=-1)
    # Not prod(): its derivative counts zeros on the host, and waits for the device to do so.
    return width * height


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # The denominator is replaced before dividing: a masked 0/0 would still poison the gradient.
    positive = denominator > 0
    safe = torch.where(positive, denominator, torch.ones_like(denominator))
    return torch.where(positive, numerator / safe, torch.zeros_like(numerator))

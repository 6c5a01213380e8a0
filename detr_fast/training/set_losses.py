"""Losses of all decoder layers at once, from the queries that the targets are matched with.

S layers, B images, Q queries, T targets of all images. Every loss is (S,), normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.boxes import cxcywh_to_xyxy, generalized_iou
from .loss_normalizer import LossNormalizer
from .targets import PackedTargets


@dataclass(frozen=True)
class Matches:
    """For each target and layer, (S, T): its query among those of all images, and if it has one."""

    query: Tensor
    found: Tensor

    @classmethod
    def of(cls, queries: Tensor, packed: PackedTargets, num_queries: int) -> Matches:
        found = queries >= 0
        # A target without a query points at the first one, and weighs nothing.
        return cls(torch.where(found, packed.image_index * num_queries + queries, 0), found)


def label_losses(
    logits: Tensor,
    packed: PackedTargets,
    matches: Matches,
    normalizer: LossNormalizer,
    class_weights: Tensor,
) -> dict[str, Tensor]:
    """`loss_ce` of logits (S, B, Q, C), C with no-object, and `class_error`, () of the last layer.

    `class_weights` are (C,). The class error is in percent, NaN where nothing is matched.
    """
    layers, images, per_image, num_logits = logits.shape
    slots = images * per_image
    # The slot behind the last query takes the targets that are left over.
    classes = matches.query.new_full((layers, slots + 1), num_logits - 1)
    slot = torch.where(matches.found, matches.query, slots)
    classes.scatter_(1, slot, packed.labels.expand_as(slot))
    negative_log_likelihood = F.cross_entropy(
        logits.reshape(-1, num_logits),
        classes[:, :-1].reshape(-1),
        class_weights.to(logits.dtype),
        reduction="none",
    )
    loss = negative_log_likelihood.view(layers, -1).sum(1) / normalizer.class_weight

    with torch.no_grad():
        last = logits[-1].reshape(-1, num_logits).index_select(0, matches.query[-1])
        wrong = matches.found[-1] & (last.argmax(-1) != packed.labels)
        percent = wrong.sum().to(logits.dtype) * 100
        class_error = (percent / normalizer.matched).to(logits.dtype)
    return {"loss_ce": loss, "class_error": class_error}


def box_losses(
    boxes: Tensor, packed: PackedTargets, matches: Matches, normalizer: LossNormalizer
) -> dict[str, Tensor]:
    """`loss_bbox` and `loss_giou` of boxes (S, B, Q, 4), normalised (cx, cy, w, h)."""
    layers, images, per_image, _ = boxes.shape
    index = matches.query[..., None].expand(-1, -1, 4)
    source = boxes.reshape(layers, images * per_image, 4).gather(1, index)
    target = packed.boxes.to(boxes.dtype).expand_as(source)
    distance = (source - target).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(source), cxcywh_to_xyxy(target))
    return {
        "loss_bbox": torch.where(matches.found, distance, 0).sum(1) / normalizer.boxes,
        "loss_giou": torch.where(matches.found, 1 - giou, 0).sum(1) / normalizer.boxes,
    }


@torch.no_grad()
def cardinality_errors(
    logits: Tensor, packed: PackedTargets, normalizer: LossNormalizer
) -> dict[str, Tensor]:
    """By how many the objects that logits (S, B, Q, C) predict in an image miss its targets."""
    # The likeliest class is an object: the same as argmax, which is ten times slower on a CPU.
    predicted = (logits[..., :-1].amax(-1) >= logits[..., -1]).sum(-1)
    error = (predicted - packed.counts_on_device()).abs().sum(-1).to(logits.dtype)
    return {"cardinality_error": error / normalizer.images}

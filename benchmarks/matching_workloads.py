"""Workloads of the matching benchmarks, and the matchers that they compare."""

import collections
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert

from detr_fast import HungarianMatcher
from detr_fast.reference.boxes import cxcywh_to_xyxy, generalized_iou

CLASSES = 91
# Targets of 16 images with the mean and the spread of COCO, for where the annotations are not.
COCO_LIKE = (3, 7, 1, 14, 2, 9, 5, 21, 0, 4, 11, 2, 6, 30, 1, 8)
COSTS = (1, 5, 2)
ANNOTATIONS = Path(__file__).resolve().parents[2] / "shared/data/coco_tiny"


def coco_counts(images: int) -> list[int]:
    """Targets of that many COCO images, repeated where there are fewer."""
    path = next(iter(sorted(ANNOTATIONS.rglob("*train*.json"))), None)
    if path is None:
        pytest.skip("no COCO annotations at ../shared/data/coco_tiny to take target counts from")
    content = json.loads(path.read_text())
    objects = collections.Counter(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    counts = [objects[image["id"]] for image in content["images"]]
    return list(itertools.islice(itertools.cycle(counts), images))


def boxes(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, 4, generator=generator) * 0.5 + 0.2


def targets(generator: torch.Generator, counts: list[int]) -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": boxes(generator, count),
        }
        for count in counts
    ]


def matching(counts: list[int], queries: int, trained: bool = False):
    """Predictions of one layer and targets, `counts` of them for each image.

    Args:
        counts: number of targets of each image.
        queries: number of queries of an image.
        trained: whether every target has three queries close to it and of its class, as after
            training, and the others see no object; else predictions are independent of targets.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = targets(generator, counts)
    outputs = {
        "pred_logits": torch.randn(len(counts), queries, CLASSES + 1, generator=generator),
        "pred_boxes": boxes(generator, len(counts), queries),
    }
    if trained:
        outputs["pred_logits"][..., -1] += 6
        for image, target in enumerate(wanted):
            near = torch.randperm(queries, generator=generator)[: 3 * len(target["labels"])]
            of = torch.arange(len(near)) % max(len(target["labels"]), 1)
            outputs["pred_logits"][image, near, target["labels"][of]] += 9
            noise = torch.randn(len(near), 4, generator=generator) * 0.02
            outputs["pred_boxes"][image, near] = (target["boxes"][of] + noise).clamp(0.01, 0.99)
    return outputs, wanted


def detr_fast(outputs, wanted):
    matcher = HungarianMatcher(*COSTS)
    return lambda: matcher(outputs, wanted)


def transformers(outputs, wanted):
    from transformers.loss.loss_for_object_detection import HungarianMatcher as Theirs

    matcher = Theirs(*COSTS)
    renamed_outputs = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    renamed = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in wanted]
    return lambda: matcher(renamed_outputs, renamed)


def padded_scipy(outputs, wanted):
    """Targets padded to the longest image, one batched cost, one copy, a loop over SciPy."""

    @torch.no_grad()
    def match():
        logits, predicted = outputs["pred_logits"], outputs["pred_boxes"]
        counts = [len(target["labels"]) for target in wanted]
        labels = torch.nn.utils.rnn.pad_sequence([t["labels"] for t in wanted], batch_first=True)
        padded = torch.nn.utils.rnn.pad_sequence([t["boxes"] for t in wanted], batch_first=True)
        index = labels[:, None].expand(-1, logits.shape[1], -1)
        cost = (
            COSTS[1] * torch.cdist(predicted, padded, p=1)
            - COSTS[0] * logits.softmax(-1).gather(2, index)
            - COSTS[2] * _pairwise_giou(predicted, padded)
        ).cpu()
        found = [linear_sum_assignment(c[:, :n]) for c, n in zip(cost, counts, strict=True)]
        return [(torch.as_tensor(i), torch.as_tensor(j)) for i, j in found]

    return match


def _pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """(B, Q, M) from (B, Q, 4) and (B, M, 4), in as few operations as the projects take."""
    a = box_convert(a, "cxcywh", "xyxy")[:, :, None]
    b = box_convert(b, "cxcywh", "xyxy")[:, None]
    overlap = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    hull = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
    inner, outer = overlap.prod(-1), hull.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union - (outer - union) / outer


def total_cost(outputs, wanted, indices) -> float:
    """The float64 cost of an answer over all images, which must be complete in each of them."""
    total = 0.0
    for image, ((i, j), target) in enumerate(zip(indices, wanted, strict=True)):
        assert len(i) == min(outputs["pred_boxes"].shape[1], len(target["labels"]))
        assert len(set(i.tolist())) == len(set(j.tolist())) == len(i)
        chosen = outputs["pred_boxes"][image, i].double()
        box = target["boxes"][j].double()
        probability = outputs["pred_logits"][image, i].double().softmax(-1)
        giou = generalized_iou(cxcywh_to_xyxy(chosen), cxcywh_to_xyxy(box))
        cost = COSTS[1] * (chosen - box).abs().sum(-1) - COSTS[2] * giou
        cost -= COSTS[0] * probability[torch.arange(len(i)), target["labels"][j]]
        total += cost.sum().item()
    return total


def agree(first: float, second: float) -> bool:
    """Whether two answers cost the same, up to the float32 rounding of the costs they minimised."""
    return math.isclose(first, second, rel_tol=1e-5, abs_tol=1e-4)

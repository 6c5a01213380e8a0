"""What test_evaluation.py evaluates, where processes that it starts can import it too."""

import json
import math

import torch
from torch import nn

from detr_fast.data.label_map import LabelMap
from detr_fast.evaluation.coco import CocoEvaluator
from detr_fast.evaluation.evaluate import evaluate
from detr_fast.training import distributed

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 40, "name": "emu"}]
LABELS = LabelMap.contiguous(CATEGORIES)
CAT, DOG = LABELS.index(7), LABELS.index(3)


def ground_truth(boxes, categories=None, image_ids=None):
    """COCO-format dictionary of (x, y, w, h) boxes, without the fields that may be absent."""
    categories = categories or [7] * len(boxes)
    image_ids = image_ids or [1] * len(boxes)
    return {
        "images": [{"id": i, "width": 100, "height": 100} for i in sorted({1, *image_ids})],
        "annotations": [
            {"bbox": list(box), "category_id": c, "image_id": i}
            for box, c, i in zip(boxes, categories, image_ids, strict=True)
        ],
        "categories": CATEGORIES,
    }


def detections(boxes, labels=None, scores=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels or [CAT] * len(boxes), dtype=torch.int64),
        "scores": torch.tensor(scores or [0.9] * len(boxes)),
    }


class Copying(nn.Module):
    """Predicts the boxes that stand in the batch, with their class, at logit 5."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config or {}
        self.seen_training = []

    def forward(self, batch):
        self.seen_training.append(self.training)
        labels = batch[..., 4].long()
        logits = 5 * nn.functional.one_hot(labels, len(LABELS) + 1).float()
        return {"pred_logits": logits, "pred_boxes": batch[..., :4]}


class Counting(nn.Module):
    """A criterion whose losses are easy to average by hand; the error is n/a on odd batches."""

    weight_dict = {"loss_ce": 1, "loss_bbox": 5, "loss_bbox_0": 5}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.batches = 0

    def normalizer(self, targets, num_queries, over_processes):
        assert not over_processes
        return len(targets)

    def total(self, losses):
        return sum(weight * losses[name] for name, weight in self.weight_dict.items())

    def forward(self, outputs, targets, normalizer):
        assert outputs["pred_logits"].dtype == torch.float32
        assert normalizer == 1
        self.batches += 1
        value = torch.tensor(float(self.batches))
        error = torch.tensor(40.0 if self.batches % 2 == 0 else math.nan)
        return {
            "loss_ce": value,
            "loss_bbox": value / 10,
            "loss_bbox_0": value / 100,
            "class_error": error,
            "cardinality_error": value * 2,
        }


def copying_case(images=4):
    """Ground truth with one cat an image, and the batches that make `Copying` find it."""
    truth = ground_truth([(10, 20, 40, 60)] * images, image_ids=list(range(1, images + 1)))
    query = torch.tensor([[[0.3, 0.5, 0.4, 0.6, CAT]]])
    return truth, [
        (query.clone(), [{"image_id": torch.tensor([i]), "orig_size": torch.tensor([100, 100])}])
        for i in range(1, images + 1)
    ]


def evaluate_on_rank(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    truth, batches = copying_case(5)
    # As a sampler that pads would deal them: image 1 comes twice.
    mine = [batches[i] for i in ([0, 2, 4], [1, 3, 0])[rank]]
    stats = evaluate(Copying(), mine, CocoEvaluator(truth, LABELS), Counting())
    (folder / f"{rank}.json").write_text(json.dumps(stats))
    distributed.shutdown()

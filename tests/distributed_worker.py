"""What each process does in test_distributed.py; started by torchrun, or twice by hand.

Usage: distributed_worker.py SCENARIO OUTPUT_FOLDER
"""

import itertools
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detr_fast.training import distributed
from detr_fast.training.criterion import SetCriterion, auxiliary_weights
from detr_fast.training.matcher import HungarianMatcher

LAYERS, QUERIES, CLASSES, WIDTH = 3, 6, 4, 8
IMAGES_PER_RANK = 3
AUX_REPEATS = (1, 2)
# By image of the joined batch; the second rank's images are empty, or fewer boxes than ranks.
TARGET_COUNTS = {
    "one rank empty": (2, 0, 9, 0, 0, 0),
    "both with objects": (1, 3, 0, 5, 2, 2),
    "one box in all": (0, 0, 0, 0, 1, 0),
    "all empty": (0, 0, 0, 0, 0, 0),
}


class Heads(nn.Module):
    """Class and box heads on features that are given, one pair for each layer."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.classes = nn.ModuleList(nn.Linear(WIDTH, CLASSES + 1) for _ in range(LAYERS))
        self.boxes = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(LAYERS))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.double()

    def forward(self, features):
        layers = [
            {"pred_logits": classes(features), "pred_boxes": boxes(features).sigmoid()}
            for classes, boxes in zip(self.classes, self.boxes, strict=True)
        ]
        return layers[-1] | {"aux_outputs": layers[:-1]}


def joined_batch(counts):
    """Features (2 * IMAGES_PER_RANK, Q, WIDTH) and targets; the same on every process."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(
        2 * IMAGES_PER_RANK, QUERIES, WIDTH, generator=generator, dtype=torch.float64
    )
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2,
        }
        for count in counts
    ]
    return features, targets


def make_criterion(aux_repeats):
    weights = auxiliary_weights({"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}, LAYERS)
    return SetCriterion(
        CLASSES,
        HungarianMatcher(1, 5, 2),
        weights,
        0.1,
        ["labels", "boxes", "cardinality"],
        aux_repeats,
    ).double()


def step(model, criterion, features, targets, micro_batches=1):
    """Gradients by name and losses of one step; micro-batches are single images."""
    model.zero_grad()
    normalizer = criterion.normalizer(targets, QUERIES) if micro_batches > 1 else None
    size = len(targets) // micro_batches
    losses = {}
    for start in range(0, len(targets), size):
        chosen = slice(start, start + size)
        last = start + size == len(targets)
        if not last and isinstance(model, DistributedDataParallel):
            with model.no_sync():
                own = criterion(model(features[chosen]), targets[chosen], normalizer)
                criterion.total(own).backward()
        else:
            own = criterion(model(features[chosen]), targets[chosen], normalizer)
            criterion.total(own).backward()
        losses = {name: losses.get(name, 0) + value.detach() for name, value in own.items()}
    bare = getattr(model, "module", model)
    return {name: p.grad.clone() for name, p in bare.named_parameters()}, losses


def gradients(folder):
    distributed.init_from_env("gloo", timeout_seconds=60)
    rank = distributed.rank()
    model = DistributedDataParallel(Heads())
    results = {}
    for name, counts in TARGET_COUNTS.items():
        features, targets = joined_batch(counts)
        own = slice(rank * IMAGES_PER_RANK, (rank + 1) * IMAGES_PER_RANK)
        for micro_batches, aux_repeats in itertools.product((1, IMAGES_PER_RANK), AUX_REPEATS):
            criterion = make_criterion(aux_repeats)
            grads, losses = step(model, criterion, features[own], targets[own], micro_batches)
            results[name, micro_batches, aux_repeats] = (grads, distributed.reduce_dict(losses))
    torch.save(results, folder / f"gradients{rank}.pt")

    value = torch.tensor([1.0, float(rank)])
    helpers = {
        "rank": rank,
        "world_size": distributed.world_size(),
        "main": distributed.is_main_process(),
        "sum": distributed.all_reduce_sum(value),
        "mean": distributed.all_reduce_mean(value),
        "untouched": value,
        "dict": distributed.reduce_dict(
            {"b": torch.tensor(float(rank)), "a": torch.tensor(4.0)}
            if rank
            else {"a": torch.tensor(2.0), "b": torch.tensor(0.0)}
        ),
        "any": distributed.any_process(rank == 1),
        "none": distributed.any_process(False),
        "gathered": distributed.all_gather({"rank": rank}),
    }
    distributed.barrier("the end")
    torch.save(helpers, folder / f"helpers{rank}.pt")
    distributed.shutdown()


def lost_rank(folder):
    distributed.init_from_env("gloo", timeout_seconds=60)
    distributed.all_reduce_sum(torch.ones(1))
    if distributed.rank() == 1:
        os._exit(0)
    try:
        with distributed.naming_lost_ranks("step 120", roll_call_seconds=1):
            distributed.all_reduce_sum(torch.ones(1))
    except RuntimeError as error:
        print(error)
    try:
        distributed.barrier("end of epoch 3", timeout_seconds=1)
    except RuntimeError as error:
        print(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"gradients": gradients, "lost_rank": lost_rank}[sys.argv[1]](Path(sys.argv[2]))

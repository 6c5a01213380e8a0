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

from detr_fast import build_model
from detr_fast.data.batching import nested_tensor_from_images
from detr_fast.training import distributed
from detr_fast.training.criterion import SetCriterion, auxiliary_weights, build_criterion
from detr_fast.training.matcher import HungarianMatcher
from detr_fast.training.recipe import Recipe
from detr_fast.training.step import TrainStep

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
# Of a joined batch with masks. Each rank, and each of its micro-batches, has an image as large as
# the canvas, on which masks are compared: it is then the same however the batch is divided.
MASK_SIZES = ((40, 64), (24, 56), (40, 64), (40, 64), (40, 64), (32, 40))
MASK_MICRO_BATCHES = {"one": (3,), "two": (1, 2)}


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


def mask_model():
    """A small panoptic model whose result depends on nothing but weights and images."""
    torch.manual_seed(3)
    model = build_model("detr_tiny_panoptic", backbone_norm="frozen", dropout=0.0)
    return model.double()


def joined_mask_batch(model, counts):
    """Images and targets with masks, of `MASK_SIZES`; the same on every process."""
    generator = torch.Generator().manual_seed(4)
    images, targets = [], []
    for count, size in zip(counts, MASK_SIZES, strict=True):
        images.append(torch.randn(3, *size, generator=generator, dtype=torch.float64))
        boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2
        targets.append(
            {
                "labels": torch.randint(model.num_classes, (count,), generator=generator),
                "boxes": boxes,
                "masks": torch.rand(count, *size, generator=generator) > 0.6,
            }
        )
    return images, targets


def mask_step(model, images, targets, sizes):
    """Gradients by name and losses of one panoptic training step, in micro-batches of `sizes`."""
    bare = getattr(model, "module", model)
    recipe = Recipe(clip_max_norm=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(enabled=False)
    criterion = build_criterion(bare, recipe).double()
    starts = itertools.accumulate(sizes, initial=0)
    result = TrainStep(model, criterion, optimizer, scaler, recipe)(
        [
            (nested_tensor_from_images(images[i : i + n]), targets[i : i + n])
            for i, n in zip(starts, sizes, strict=False)
        ]
    )
    assert result.finite, result.faults
    learning = [(name, p) for name, p in bare.named_parameters() if p.requires_grad]
    return {name: p.grad.clone() for name, p in learning}, result.losses


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

    model = mask_model()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    results = {}
    for (name, counts), (division, sizes) in itertools.product(
        TARGET_COUNTS.items(), MASK_MICRO_BATCHES.items()
    ):
        images, targets = joined_mask_batch(model, counts)
        own = slice(rank * IMAGES_PER_RANK, (rank + 1) * IMAGES_PER_RANK)
        results[name, division] = mask_step(wrapped, images[own], targets[own], sizes)
    torch.save(results, folder / f"masks{rank}.pt")

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

"""Optimizer and schedule of a recipe."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from .recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trainable parameters as AdamW takes them: the rest first, then the backbone.

    Every parameter decays, those of normalisations and biases included, as in DETR. Each group
    holds the `names` of its `params`, so that a stored optimizer state can be told apart by name.

    Raises:
        ValueError: No parameter is trainable.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameter: every one has requires_grad=False")
    groups = []
    for is_backbone, lr in ((False, recipe.lr), (True, recipe.lr_backbone)):
        members = [(name, p) for name, p in named if in_backbone(name) == is_backbone]
        if members:
            names, params = zip(*members, strict=True)
            groups.append({"params": list(params), "names": list(names), "lr": lr})
    return groups


def in_backbone(name: str) -> bool:
    """Whether a parameter belongs to the backbone, by its name."""
    return "backbone" in name


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in one fused pass where the device has one.

    The fused form also takes the gradient scaler's verdict as a tensor, which saves the
    synchronisation that fp16 otherwise costs.
    """
    groups = parameter_groups(model, recipe)
    device = groups[0]["params"][0].device.type
    return torch.optim.AdamW(
        groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=device in ("cpu", "cuda")
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> LRScheduler:
    """The schedule of the learning rates.

    Returns:
        A scheduler to be stepped after every epoch for "step", after every optimizer step for
        "one_cycle"; `steps_each_epoch` says which.
    """
    if recipe.schedule == "step":
        return StepLR(optimizer, recipe.lr_drop)
    # Neither the rise nor the fall may be shorter than two steps.
    total_steps = max(recipe.epochs * steps_per_epoch, 4)
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=max(recipe.warmup, 2 / total_steps),
        cycle_momentum=False,
    )


def steps_each_epoch(recipe: Recipe) -> bool:
    """Whether the schedule moves after every epoch; otherwise it moves after every step."""
    return recipe.schedule == "step"

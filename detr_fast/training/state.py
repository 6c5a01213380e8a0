"""Everything that a training run changes, in one place: to save it, and to go on from it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..models.checkpoint import Checkpoint, load_weights
from . import checkpoints, distributed, random_state
from .averages import EpochAverages
from .optimization import build_optimizer, build_scheduler, steps_each_epoch
from .recipe import Recipe


class TrainingState:
    """Model, optimizer, schedule, scaler, and how far the run has come.

    Args:
        model: On the device to train on.
        recipe: How it is trained.
        steps_per_epoch: Optimizer steps in an epoch.

    Attributes:
        epoch: Index of the epoch at hand, which is the number of completed ones.
        steps: Optimizer steps taken, skipped ones included.
        seen: Images of the epoch at hand that are behind, over all processes.
        averages: Figures of the epoch at hand.
        unlogged: Figures of a completed epoch that is not in the log yet.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, steps_per_epoch: int) -> None:
        self.model = model
        self.recipe = recipe
        self.optimizer = build_optimizer(model, recipe)
        self.scheduler = build_scheduler(self.optimizer, recipe, steps_per_epoch)
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.epoch = 0
        self.steps = 0
        self.seen = 0
        self.averages = EpochAverages()
        self.unlogged: dict[str, Any] | None = None
        self._steps_per_epoch = steps_per_epoch
        # Without gradients this changes nothing. A schedule warns if no step came before its own,
        # as none does where training starts late or with a step that is skipped.
        self.optimizer.step()

    def start_at(self, epoch: int) -> None:
        """Begins with a later epoch, its schedule advanced as if the earlier ones had been."""
        each_epoch = steps_each_epoch(self.recipe)
        self.epoch = epoch
        self.steps = epoch * self._steps_per_epoch
        for _ in range(epoch if each_epoch else self.steps):
            self.scheduler.step()

    def step_done(self, images: int) -> None:
        """Counts a step of so many images and moves a schedule that moves with every step."""
        self.steps += 1
        self.seen += images
        if not steps_each_epoch(self.recipe):
            self.scheduler.step()

    def epoch_done(self) -> None:
        """Turns to the next epoch and moves a schedule that moves with every epoch."""
        self.unlogged = self.figures()
        self.epoch += 1
        self.seen = 0
        self.averages.clear()
        if steps_each_epoch(self.recipe):
            self.scheduler.step()

    def figures(self) -> dict[str, Any]:
        """The averages of the epoch at hand by their names in the log, and its index."""
        means = self.averages.means()
        return {**{f"train_{name}": value for name, value in means.items()}, "epoch": self.epoch}

    def weights(self) -> dict[str, Any]:
        """The part of a checkpoint that it takes to build the model again."""
        label_map = self.model.label_map
        return {
            "model": self.model.state_dict(),
            "config": self.model.config,
            "label_map": None if label_map is None else label_map.to_dict(),
        }

    def checkpoint(self) -> dict[str, Any] | None:
        """All of it, in the first process; None in the others, which all have to take part."""
        rng = distributed.all_gather(random_state.rng_state(self.device))
        if not distributed.is_main_process():
            return None
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch - 1,
            "progress": {
                "steps": self.steps,
                "seen": self.seen,
                "averages": self.averages.state_dict(),
                "unlogged": self.unlogged,
            },
            "rng": rng,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this package or of the original DETR.

        Raises:
            ValueError: It holds weights only, or does not fit the model or the recipe.
        """
        saved = checkpoint.extra
        for key in ("optimizer", "lr_scheduler", "epoch"):
            if key not in saved:
                raise ValueError(
                    f"the checkpoint has no '{key}': its weights can be detected with, and can "
                    "start a new training with --weights; resume from a last.pth"
                )
        load_weights(self.model, checkpoint.model, strict=True)
        checkpoints.load_optimizer_state(self.optimizer, saved["optimizer"], checkpoint.model)
        self._restore_schedule(saved["lr_scheduler"])
        if saved.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        self.epoch = saved["epoch"] + 1
        progress = saved.get("progress", {})
        self.steps = progress.get("steps", self.epoch * self._steps_per_epoch)
        self.seen = progress.get("seen", 0)
        self.averages.load_state_dict(progress.get("averages", {}))
        self.unlogged = progress.get("unlogged")
        # With another number of processes the generators start from the seed.
        if len(saved.get("rng", ())) == distributed.world_size():
            random_state.set_rng_state(saved["rng"][distributed.rank()], self.device)

    def _restore_schedule(self, saved: Mapping[str, Any]) -> None:
        each_epoch = steps_each_epoch(self.recipe)
        if ("step_size" in saved) != each_epoch:
            raise ValueError(
                f"the schedule is to be '{self.recipe.schedule}' but the checkpoint was trained "
                "with another; resume with the one it has"
            )
        if not each_epoch and saved["total_steps"] != self.scheduler.total_steps:
            raise ValueError(
                f"the checkpoint's one-cycle schedule has {saved['total_steps']} steps, this run "
                f"{self.scheduler.total_steps}, and it cannot be stretched: resume with the same "
                "epochs, batch size and data, or start a new training with --weights"
            )
        self.scheduler.load_state_dict(saved)
        if each_epoch:
            self.scheduler.step_size = self.recipe.lr_drop

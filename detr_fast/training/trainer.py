"""The training loop: from a model, a recipe and data to a run folder."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data.batching import collate
from ..data.build import build_loader
from ..data.sampling import SeededSamples
from ..evaluation.coco import CocoEvaluator
from ..evaluation.evaluate import evaluate
from ..evaluation.masks import MaskEvaluator
from ..models.checkpoint import Checkpoint
from ..models.segmentation import DETRSegmentation
from . import distributed
from .checkpoints import write_checkpoint
from .criterion import build_criterion
from .data_checks import check_classes, check_data
from .epoch_record import line_of, score_of, test_figures
from .interruption import Interruption
from .nonfinite import NonFiniteError, NonFiniteSteps, what_was_nonfinite
from .progress import Progress
from .random_state import seed_everything
from .recipe import Recipe
from .run_folder import RunFolder
from .sampling import StepSampler
from .state import TrainingState
from .step import Batch, StepResult, TrainStep


class NothingToDoError(ValueError):
    """The checkpoint to resume from has all the epochs or steps that were asked for."""


@dataclass(frozen=True)
class TrainingResult:
    """What `Trainer.fit` leaves behind.

    Attributes:
        folder: The run folder.
        record: The last line of the log; empty where this run has not written one.
        exit_code: 0, or 128 plus the number of the signal that ended the training early.
    """

    folder: Path
    record: dict[str, Any]
    exit_code: int


class Trainer:
    """Trains a model by a recipe, evaluates it, and fills a run folder.

    In a group of processes (see `distributed.init_from_env`) each process builds the same trainer;
    the first one writes and prints.

    Args:
        model: As `build_model` gives it; moved to `device`. One without a label map takes that of
            the training set.
        recipe: How to train.
        train_dataset: Gives (image, target) pairs; see `detr_fast.data`.
        val_dataset: The same with `ground_truth()` and `label_map`, for a model with masks also
            what `evaluation.masks` asks for; None for no evaluation.
        output_dir: Run folder: new, empty, or the one that `resume` lies in. None takes the latter,
            or else the next free of runs/train, runs/train2, ...
        device: Device to train on.
        resume: Checkpoint to go on from, as read by `models.checkpoint.load_checkpoint`.
        resume_path: File it was read from.
        start_epoch: Index of the epoch to begin with where nothing is resumed.
        seed: Of the order of the images and, with the number of the process, of everything else
            that is random.
        num_workers: Loader processes of each process.
        eval_every: Epochs between two evaluations; the last epoch is evaluated always.
        max_steps: Ends the training after this many steps in all; None for no limit.
        check_data: Whether `fit` begins with `data.checks.check_dataset`.
        args: Settings to store beside the recipe's in args.yaml and checkpoints; plain types.

    Attributes:
        state: What the training changes.
        criterion: What it minimises.
        folder: The run folder, from the beginning of `fit` on.

    Raises:
        ValueError: The training set does not fill one step, the classes of model and data differ,
            the recipe does not fit the device, or the checkpoint does not fit model and recipe.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train_dataset: Dataset,
        val_dataset: Dataset | None = None,
        *,
        output_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        resume: Checkpoint | None = None,
        resume_path: str | Path | None = None,
        start_epoch: int = 0,
        seed: int = 42,
        num_workers: int = 0,
        eval_every: int = 1,
        max_steps: int | None = None,
        check_data: bool = True,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        check_classes(model, train_dataset, val_dataset)
        self.recipe = recipe
        self.device = torch.device(device)
        # The layout in which convolutions are fastest, on a CPU by a third of a step.
        self.model = model.to(self.device, memory_format=torch.channels_last)
        if model.label_map is None:
            model.label_map = train_dataset.label_map
        self._has_masks = isinstance(model, DETRSegmentation)
        self._train_dataset = train_dataset
        self._val_dataset = val_dataset
        self._check_data = check_data
        self._eval_every = eval_every
        self._max_steps = math.inf if max_steps is None else max_steps
        self._provenance = {
            "args": {**recipe.to_dict(), "seed": seed, **(args or {})},
            "preprocess": {"short_side": recipe.short_side, "max_size": recipe.max_size},
        }
        self._nonfinite = NonFiniteSteps(recipe.nonfinite)
        self._best = -math.inf
        self._last_record: dict[str, Any] = {}
        self._ground_truth: Mapping[str, Any] | None = None
        self._output_dir = output_dir
        self._resume_path = resume_path

        self._sampler = StepSampler(
            len(train_dataset),
            recipe.batch_size * recipe.accumulate,
            seed,
            distributed.rank(),
            distributed.world_size(),
        )
        loading: dict[str, Any] = {
            "batch_size": recipe.batch_size,
            "num_workers": num_workers,
            "pin_memory": self.device.type == "cuda",
        }
        self._train_loader = DataLoader(
            SeededSamples(train_dataset),
            sampler=self._sampler,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
            # Its own: a loader without one moves the global generator.
            generator=torch.Generator(),
            **loading,
        )
        self._val_loader = None
        if val_dataset is not None:
            self._val_loader = build_loader(
                val_dataset, distributed=distributed.is_distributed(), **loading
            )
        self.criterion = build_criterion(model, recipe).to(self.device)
        self.state = TrainingState(self.model, recipe, self._sampler.steps_per_epoch)
        self._step = TrainStep(
            distributed.data_parallel(self.model, self.device),
            self.criterion,
            self.state.optimizer,
            self.state.scaler,
            recipe,
        )
        seed_everything(seed + distributed.rank())
        if resume is not None:
            self.state.restore(resume)
        elif start_epoch:
            self.state.start_at(start_epoch)

    def fit(self) -> TrainingResult:
        """Trains until the last epoch, `max_steps`, or a signal.

        After a signal, and after `max_steps`, `weights/last.pth` holds the state in the middle of
        the epoch, and resuming goes on with the images not seen yet.

        Returns:
            Where the results are, and the last of them.

        Raises:
            NothingToDoError: All epochs or steps are done.
            DataError: The data cannot be learned from.
            FileExistsError: `output_dir` holds something else.
            NonFiniteError: Something was not finite and the recipe says to stop, or too many steps
                in a row were skipped. `weights/last.pth` holds the state before that step.
            CheckpointWriteError: A checkpoint could not be written.
            KeyboardInterrupt: A signal came while no step was under way, or a second one.
        """
        state = self.state
        main = distributed.is_main_process()
        if state.epoch >= self.recipe.epochs:
            raise NothingToDoError(
                f"nothing to do: checkpoint at epoch {state.epoch} of {self.recipe.epochs}; "
                "ask for more epochs"
            )
        if state.steps >= self._max_steps:
            raise NothingToDoError(
                f"nothing to do: checkpoint after {state.steps} steps, max_steps is "
                f"{self._max_steps}"
            )
        if self._check_data:
            distributed.in_first_process(
                lambda: check_data(self.model, self._train_dataset, self._val_dataset)
            )
        self.folder = self._open_folder()
        if main:
            self.folder.write_args(self._provenance["args"])
        self._progress = Progress(
            self.recipe.epochs, self._sampler.steps_per_epoch, state.steps, enabled=main
        )
        self._progress.message(f"results go to {self.folder.path}")
        with Interruption() as interruption:
            try:
                self._evaluate_and_log(state.unlogged)
                while state.epoch < self.recipe.epochs and state.steps < self._max_steps:
                    epoch = state.epoch
                    if self._train(interruption):
                        self._progress.message(f"interrupted; resume from {self.folder.last}")
                        break
                    self._evaluate_and_log(
                        state.unlogged if state.epoch > epoch else state.figures()
                    )
            finally:
                self._progress.close()
        if main:
            self.folder.plot()
        return TrainingResult(self.folder.path, self._last_record, interruption.exit_code)

    def evaluate(self) -> dict[str, Any]:
        """Evaluates the model as it is on the validation set; see `evaluation.evaluate`.

        Raises:
            ValueError: There is no validation set.
        """
        if self._val_dataset is None:
            raise ValueError("there is no validation set to evaluate on")
        if self._ground_truth is None:
            self._ground_truth = self._val_dataset.ground_truth()
        return evaluate(
            self.model,
            self._val_loader,
            CocoEvaluator(self._ground_truth, self._val_dataset.label_map),
            self.criterion,
            self.device,
            amp=self._step.autocast_dtype,
            mask_evaluator=MaskEvaluator(self._val_dataset) if self._has_masks else None,
        )

    def _train(self, interruption: Interruption) -> bool:
        """Trains to the end of the epoch, saves, and says whether a signal ended it early."""
        state = self.state
        self.model.train()
        self.criterion.train()
        self._sampler.set_epoch(state.epoch, state.seen)
        stop = False
        with interruption.deferred():
            began = time.monotonic()
            for batches, waited in self._batches_of_steps():
                with distributed.naming_lost_ranks(f"step {state.steps + 1}"):
                    result = self._step(batches, stop=interruption.signal is not None)
                self._account(result)
                now = time.monotonic()
                self._progress.step(
                    result.loss,
                    max(group["lr"] for group in state.optimizer.param_groups),
                    self._sampler.images_per_step,
                    now - began,
                    waited,
                )
                began = now
                stop = result.stop
                if stop or state.steps >= self._max_steps:
                    break
            if self._sampler.steps_left(state.seen) == 0:
                state.epoch_done()
            self._save()
        return stop

    def _batches_of_steps(self) -> Iterator[tuple[list[Batch], float]]:
        """The batches of each step and how long they were waited for, in seconds."""
        batches: list[Batch] = []
        began = time.monotonic()
        for batch in self._train_loader:
            batches.append(batch)
            if len(batches) == self.recipe.accumulate:
                yield batches, time.monotonic() - began
                batches = []
                began = time.monotonic()

    def _account(self, result: StepResult) -> None:
        """Books a step, and applies the policy for those that are not finite."""
        state = self.state
        ends = self._nonfinite.ends_training(result)
        if result.finite:
            lr = state.optimizer.param_groups[0]["lr"]
            state.averages.add(result.losses, result.loss, lr, self.criterion.weight_dict)
        else:
            fault = f"step {state.steps + 1}, epoch {state.epoch + 1}: {what_was_nonfinite(result)}"
            if ends:
                self._save()
                raise NonFiniteError(
                    f"{fault}. The weights before it are in {self.folder.last}; lower the "
                    "learning rate, or skip such steps with nonfinite='skip'"
                )
            self._progress.message(f"skipped {fault}")
        state.step_done(self._sampler.images_per_step)

    def _evaluate_and_log(self, record: dict[str, Any] | None) -> None:
        """Evaluates and logs an epoch of which `record` holds the figures of the training."""
        if record is None:
            return
        record = dict(record)
        epoch = record.pop("epoch")
        last = epoch + 1 >= self.recipe.epochs or self.state.steps >= self._max_steps
        score = -math.inf
        if self._val_dataset is not None and (last or (epoch + 1) % self._eval_every == 0):
            self._progress.phase("evaluating")
            with distributed.naming_lost_ranks(f"evaluation after epoch {epoch + 1}"):
                figures = self.evaluate()
            record |= test_figures(figures)
            score = score_of(record)
        record["epoch"] = epoch
        record["n_parameters"] = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._last_record = record
        self.state.unlogged = None
        if not distributed.is_main_process():
            return
        if score > self._best:
            self._best = score
            ap = record["test_coco_eval_bbox"][0]
            best = {**self.state.weights(), **self._provenance, "epoch": epoch, "AP": ap}
            write_checkpoint(best, self.folder.best)
        self.folder.append(record)
        self._progress.message(line_of(record, self.recipe.epochs))

    def _save(self) -> None:
        checkpoint = self.state.checkpoint()
        distributed.in_first_process(
            lambda: write_checkpoint({**checkpoint, **self._provenance}, self.folder.last)
        )

    def _open_folder(self) -> RunFolder:
        folder, records = distributed.in_first_process(self._open_folder_and_log)
        scores = (score_of(record) for record in records if "test_coco_eval_bbox" in record)
        self._best = max(scores, default=-math.inf)
        if any(record["epoch"] == self.state.epoch - 1 for record in records):
            self.state.unlogged = None
        return folder

    def _open_folder_and_log(self) -> tuple[RunFolder, list[dict[str, Any]]]:
        if self._resume_path is None:
            folder = RunFolder.create(self._output_dir)
        else:
            folder = RunFolder.reopen(self._output_dir, self._resume_path, self.state.epoch)
        return folder, folder.records()

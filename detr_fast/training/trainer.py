"""The training loop: from a model, a recipe and data to a run folder."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from ..data.batching import collate
from ..data.build import build_loader
from ..data.checks import check_dataset
from ..data.sampling import SeededSamples
from ..evaluation.coco import CocoEvaluator
from ..evaluation.evaluate import evaluate
from ..evaluation.masks import MaskEvaluator
from ..models.checkpoint import Checkpoint
from ..models.segmentation import DETRSegmentation
from . import distributed
from .checkpoints import write_checkpoint
from .criterion import SetCriterion, auxiliary_weights
from .interruption import Interruption
from .matcher import HungarianMatcher
from .progress import Progress
from .recipe import Recipe
from .run_folder import RunFolder
from .sampling import StepSampler
from .state import TrainingState
from .step import Batch, StepResult, TrainStep

# A model whose every step is skipped does not recover.
_MAX_SKIPPED_IN_A_ROW = 20
# Decoding more images than this would take longer than waiting for the faulty one.
_MAX_DECODED_BY_CHECK = 5000


class NonFiniteError(ValueError):
    """Training stopped because predictions, losses or gradients were NaN or infinite."""


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
        _check_classes(model, train_dataset, val_dataset)
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
        self._skipped_in_a_row = 0
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
            _distributed(self.model, self.device),
            self.criterion,
            self.state.optimizer,
            self.state.scaler,
            recipe,
        )
        _seed_everything(seed + distributed.rank())
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
            _in_first_process(self._check)
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
        if result.finite:
            self._skipped_in_a_row = 0
            lr = state.optimizer.param_groups[0]["lr"]
            state.averages.add(result.losses, result.loss, lr, self.criterion.weight_dict)
        else:
            self._skipped_in_a_row += 1
            fault = f"step {state.steps + 1}, epoch {state.epoch + 1}: {_describe(result)}"
            if self.recipe.nonfinite == "stop" or self._skipped_in_a_row > _MAX_SKIPPED_IN_A_ROW:
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
        line = f"epoch {epoch + 1}/{self.recipe.epochs}: "
        line += f"loss {record.get('train_loss', math.nan):.3f}"
        score = -math.inf
        if self._val_dataset is not None and (last or (epoch + 1) % self._eval_every == 0):
            self._progress.phase("evaluating")
            with distributed.naming_lost_ranks(f"evaluation after epoch {epoch + 1}"):
                figures = self.evaluate()
            record |= {f"test_{name}": value for name, value in figures["losses"].items()}
            record |= _test_figures(figures)
            score = _score(record)
            line += f", AP {figures['AP']:.3f}, AP50 {figures['AP50']:.3f}"
            if "segm" in figures:
                line += f", mask AP {figures['segm']['AP']:.3f}"
            if "panoptic" in figures:
                line += f", PQ {figures['panoptic']['PQ']:.3f}"
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
        self._progress.message(line)

    def _save(self) -> None:
        checkpoint = self.state.checkpoint()
        _in_first_process(
            lambda: write_checkpoint({**checkpoint, **self._provenance}, self.folder.last)
        )

    def _check(self) -> None:
        datasets = {id(d): d for d in (self._train_dataset, self._val_dataset) if d is not None}
        for dataset in datasets.values():
            decode = len(dataset) <= _MAX_DECODED_BY_CHECK
            report = check_dataset(dataset, self.model.num_queries, decode)
            report.raise_for_errors()
            print(report, flush=True)

    def _open_folder(self) -> RunFolder:
        folder, records = _in_first_process(self._open_folder_and_log)
        scores = (_score(record) for record in records if "test_coco_eval_bbox" in record)
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


def build_criterion(model: nn.Module, recipe: Recipe) -> SetCriterion:
    """DETR's criterion for a model, with the costs and weights of a recipe."""
    layers = len(model.transformer.decoder.layers) if getattr(model, "aux_loss", False) else 1
    weights = auxiliary_weights(recipe.loss_weights(), layers)
    losses = ["labels", "boxes", "cardinality"]
    if isinstance(model, DETRSegmentation):
        weights |= recipe.mask_loss_weights()
        losses.append("masks")
    return SetCriterion(
        model.num_classes,
        HungarianMatcher(recipe.set_cost_class, recipe.set_cost_bbox, recipe.set_cost_giou),
        weights,
        recipe.eos_coef,
        losses,
        recipe.aux_repeats,
        recipe.mask_resolution,
    )


def _test_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation under the names of the original's logs."""
    record: dict[str, Any] = {"test_coco_eval_bbox": figures["coco_eval_bbox"]}
    if "segm" in figures:
        record["test_coco_eval_masks"] = figures["segm"]["coco_eval_masks"]
    if "panoptic" in figures:
        for group, suffix in (("all", ""), ("th", "_th"), ("st", "_st")):
            record[f"test_PQ_{group}"] = {
                name.lower(): figures["panoptic"][name + suffix] for name in ("PQ", "SQ", "RQ")
            }
    return record


def _score(record: Mapping[str, Any]) -> float:
    """What the best weights are chosen by: PQ, or AP of masks, or AP of boxes."""
    if "test_PQ_all" in record:
        # Null in a log where no class occurs.
        quality = record["test_PQ_all"]["pq"]
        return -math.inf if quality is None else quality
    return record.get("test_coco_eval_masks", record["test_coco_eval_bbox"])[0]


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model wrapped for several processes, itself for one."""
    if distributed.world_size() == 1:
        return model
    # Running statistics differ between processes, frozen ones do not: no need to send those.
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=batch_norm,
    )


def _in_first_process(action: Callable[[], Any]) -> Any:
    """The result of `action` in the first process, or its error, in all processes."""
    outcome: Any = None
    if distributed.is_main_process():
        try:
            outcome = action()
        except (OSError, ValueError) as error:
            outcome = error
    outcome = distributed.all_gather(outcome)[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _check_classes(model: nn.Module, train: Dataset, val: Dataset | None) -> None:
    if len(train.label_map) != model.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, the training set "
            f"{len(train.label_map)}; build the model with num_classes={len(train.label_map)}"
        )
    if val is not None and val.label_map != train.label_map:
        raise ValueError(
            f"the label maps differ: {train.label_map} in training, {val.label_map} in "
            "validation; build both data sets with the same label_map"
        )


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - data sets use the global generator


def _describe(result: StepResult) -> str:
    if not result.faults:
        what = "the gradient" if math.isfinite(result.loss) else "the loss"
        return f"{what} is not finite (loss {result.loss})"
    shown = "; ".join(result.faults[:3])
    more = f" and {len(result.faults) - 3} more" if len(result.faults) > 3 else ""
    return f"predictions are not finite: {shown}{more}"

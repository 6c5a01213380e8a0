"""One optimizer step: forward and backward passes, and the decision whether to take it."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.batching import NestedTensor
from . import distributed
from .criterion import SetCriterion
from .recipe import Recipe

Batch = tuple[NestedTensor, list[dict[str, Tensor]]]


@dataclass(frozen=True)
class StepResult:
    """What one step did; the same on every process.

    Attributes:
        losses: Unweighted losses and errors by the criterion's names, of the whole batch over all
            processes. `class_error` is NaN where the batch has no object.
        loss: Their weighted sum.
        finite: Whether predictions, losses and gradient were; if not, the weights are unchanged.
        stop: Whether any process asked to stop.
        faults: One line for every prediction of a layer for an image that is not finite.
    """

    losses: dict[str, float]
    loss: float
    finite: bool
    stop: bool
    faults: list[str] = field(default_factory=list)


class TrainStep:
    """Takes steps of a recipe on a model.

    The host waits for the device once a step, for everything it needs to know together.

    Args:
        model: The model, wrapped in DistributedDataParallel where there are several processes.
        criterion: On the model's device.
        optimizer: Of the model's parameters.
        scaler: Of the gradients; enabled for "fp16".
        recipe: Gives `clip_max_norm` and `amp`.

    Raises:
        ValueError: "fp16" without CUDA, whose gradients need a scaler that only CUDA has.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        recipe: Recipe,
    ) -> None:
        device = next(model.parameters()).device
        if recipe.amp == "fp16" and device.type != "cuda":
            raise ValueError(
                f"amp is 'fp16' on device '{device}'; 16-bit floats train on CUDA only. "
                "Use 'bf16' here, or 'no'"
            )
        self._model = model
        self._bare_model = getattr(model, "module", model)
        self._criterion = criterion
        self._optimizer = optimizer
        self._scaler = scaler
        self._device = device
        self._clip_max_norm = recipe.clip_max_norm or math.inf
        self._autocast_dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[
            recipe.amp
        ]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._running_statistics = [
            buffer
            for module in self._bare_model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
            for buffer in module.buffers(recurse=False)
        ]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What the model computes in, None for its own type."""
        return self._autocast_dtype

    def __call__(self, batches: Sequence[Batch], stop: bool = False) -> StepResult:
        """Takes one step on the union of some batches.

        Args:
            batches: As the loader gives them, on the CPU; their gradients add up to that of the
                joined batch.
            stop: This process's wish to stop after the step.

        Returns:
            The result; where it is not `finite` the weights and running statistics are as before.
        """
        statistics = [buffer.clone() for buffer in self._running_statistics]
        normalizer = self._criterion.normalizer(
            [target for _, targets in batches for target in targets],
            self._bare_model.num_queries,
            device=self._device,
        )
        self._optimizer.zero_grad(set_to_none=True)
        finite_predictions = []
        sums: dict[str, Tensor] = {}
        for number, (images, targets) in enumerate(batches, start=1):
            with self._no_reduction_before(number == len(batches)):
                targets = _to(targets, self._device)
                outputs = self._forward(images, targets)
                losses = self._criterion(outputs, targets, normalizer)
                self._scaler.scale(self._criterion.total(losses)).backward()
            finite_predictions.append(_finite_predictions(outputs))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_max_norm)
        result = self._read(sums, norm, finite_predictions, batches, stop)
        if result.finite:
            self._scaler.step(self._optimizer)
        else:
            for buffer, before in zip(self._running_statistics, statistics, strict=True):
                buffer.copy_(before)
        self._scaler.update()
        return result

    def _forward(
        self, images: NestedTensor, targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Any]:
        images = images.to(self._device, non_blocking=True)
        options = {}
        if "masks" in self._criterion.losses:
            # Queries that no target is matched with learn no mask, and need none.
            options["select"] = partial(self._criterion.matched_queries, targets=targets)
        dtype = self._autocast_dtype
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            return self._model(images, **options)

    def _no_reduction_before(self, last: bool) -> contextlib.AbstractContextManager:
        """Gradients travel between processes with the last batch of a step only."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._model.no_sync()

    def _read(
        self,
        sums: Mapping[str, Tensor],
        norm: Tensor,
        finite_predictions: Sequence[Tensor],
        batches: Sequence[Batch],
        stop: bool,
    ) -> StepResult:
        """The one synchronisation: reduces over processes, copies to the host, and decides."""
        weights = self._criterion.weight_dict
        total = torch.stack([value * weights[k] for k, value in sums.items() if k in weights]).sum()
        bad = ~torch.isfinite(total)
        # A scaled 16-bit gradient overflows now and then; the scaler sees to that itself.
        if not self._scaler.is_enabled():
            bad = bad | ~torch.isfinite(norm)
        for finite in finite_predictions:
            bad = bad | ~finite.all()
        local = torch.stack([*sums.values(), total, bad.to(total.dtype)])
        flag = total.new_full((1,), float(stop))
        means = distributed.all_reduce_mean(torch.cat([local, flag]))
        layout = torch.cat([finite.flatten() for finite in finite_predictions]).to(total.dtype)
        numbers = torch.cat([means, layout]).tolist()

        *values, loss, bad_share, stop_share = numbers[: len(means)]
        faults: list[str] = []
        if bad_share > 0:
            mine = _describe(numbers[len(means) :], finite_predictions, batches)
            faults = [line for lines in distributed.all_gather(mine) for line in lines]
        return StepResult(
            losses=dict(zip(sums, values, strict=True)),
            loss=loss,
            finite=bad_share == 0,
            stop=stop_share > 0,
            faults=faults,
        )


def _to(targets: Sequence[Mapping[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    return [
        {name: value.to(device, non_blocking=True) for name, value in target.items()}
        for target in targets
    ]


@torch.no_grad()
def _finite_predictions(outputs: Mapping[str, Any]) -> Tensor:
    """Whether each layer's prediction for each image is finite, bool (S, B), last layer last."""
    layers = [*outputs.get("aux_outputs", ()), outputs]
    logits = torch.stack([layer["pred_logits"] for layer in layers])
    boxes = torch.stack([layer["pred_boxes"] for layer in layers])
    return torch.isfinite(logits).all(-1).all(-1) & torch.isfinite(boxes).all(-1).all(-1)


def _describe(
    flags: Sequence[float], finite_predictions: Sequence[Tensor], batches: Sequence[Batch]
) -> list[str]:
    lines = []
    position = 0
    for finite, (_, targets) in zip(finite_predictions, batches, strict=True):
        layers, images = finite.shape
        for layer in range(layers):
            for image in range(images):
                if not flags[position + layer * images + image]:
                    lines.append(
                        f"decoder layer {layer + 1} of {layers}, "
                        f"image {int(targets[image]['image_id'])}"
                    )
        position += layers * images
    return lines

"""Evaluation of a detector over a data loader."""

import functools
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.batching import NestedTensor
from ..data.normalization import Normalization
from ..inference.postprocess import PostProcess, on_host
from ..models.padding import image_extents

if TYPE_CHECKING:
    from .coco import CocoEvaluator
    from .masks import MaskEvaluator

DC5_NOTE = (
    "note: this model dilates its last stage (DC5) and the batch size is {batch_size}. With the "
    "original's padding masks its AP depends on the batch size; batch size 1 gives the published "
    "figures, and so does exact_batches with any."
)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader,
    evaluator: "CocoEvaluator",
    criterion: nn.Module | None = None,
    device: torch.device | str = "cpu",
    *,
    amp: torch.dtype | None = None,
    progress: bool = False,
    mask_evaluator: "MaskEvaluator | None" = None,
) -> dict:
    """Detect on every image of a loader and compare with the ground truth.

    In a distributed run every process calls this with its own part of the data, of any size; all
    of them return the same figures. Nothing is exchanged before the end. The model is put in
    evaluation mode and back into the mode it was in.

    Args:
        model: takes a batch, gives `pred_logits`, `pred_boxes` and, if any, `aux_outputs`.
        loader: iterable of (batch, list of targets as the data sets give them). Batches are
            `NestedTensor`s or what else the model takes; `NestedTensor`s of uint8 are normalised on
            the device. From page-locked memory they go there without being waited for.
        evaluator: takes the detections; its figures are the ones returned.
        criterion: if given, the loss statistics are computed too: a `SetCriterion`, or a module
            with its `forward`, `normalizer` and `total`.
        device: where the model is and the batches go.
        amp: `torch.bfloat16` or `torch.float16` to run the model under autocast; losses and boxes
            are computed in float32 in any case.
        progress: show a progress bar on standard error.
        mask_evaluator: takes the masks of a `DETRSegmentation`.

    Returns:
        What `CocoEvaluator.summarize` returns, what the `mask_evaluator`'s does, and `losses`:
        averages over the batches of all processes, under the names of the original's logs. `loss`
        is the weighted sum; each term is there multiplied by its weight (`loss_ce`,
        `loss_bbox_0`, ...) and, with `_unscaled` after its name, as it is, like
        `cardinality_error_unscaled` and `class_error_unscaled`; `class_error` is in percent, NaN if
        there was no object in any image. A batch counts by itself: its losses are not normalised
        together with those of other processes. Empty without a criterion.

    Raises:
        ValueError: if the loader gave no batch.
    """
    batch_size = getattr(getattr(loader, "batch_sampler", loader), "batch_size", 1)
    detector = getattr(model, "module", model)  # also of a DDP model
    dilated = (getattr(detector, "config", None) or {}).get("dilation")
    exact = getattr(detector, "exact_batches", False)
    if batch_size > 1 and dilated and not exact and _rank() == 0:
        _print_once(DC5_NOTE.format(batch_size=batch_size))
    roots = [root for root in (model, criterion) if root is not None]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.eval()
    device = torch.device(device)
    normalise = Normalization(device)
    postprocess = PostProcess()
    averages = _Averages()
    try:
        for batch, targets in _with_bar(loader, progress):
            batch = _placed(batch, device, normalise)
            with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
                outputs = model(batch)
            if criterion is not None:
                on_device = [
                    {k: v.to(device, non_blocking=device.type == "cuda") for k, v in target.items()}
                    for target in targets
                ]
                averages.add(_loss_statistics(criterion, _in_float32(outputs), on_device))
            sizes = torch.stack([target["orig_size"] for target in targets])
            ids = [int(target["image_id"]) for target in targets]
            detections = on_host(postprocess(outputs, sizes))
            evaluator.update(dict(zip(ids, detections, strict=True)))
            if mask_evaluator is not None:
                mask_evaluator.update(outputs, detections, targets, batch.tensors.shape[-2:])
    finally:
        for module, training in modes:
            module.training = training
    evaluator.synchronize()
    figures = evaluator.summarize()
    if mask_evaluator is not None:
        mask_evaluator.synchronize()
        figures |= mask_evaluator.summarize()
    return {**figures, "losses": averages.over_processes()}


def _placed(batch, device: torch.device, normalise: Normalization):
    """A batch of a loader on the device, as the model takes it."""
    batch = batch.to(device, non_blocking=device.type == "cuda")
    if not isinstance(batch, NestedTensor) or batch.tensors.dtype != torch.uint8:
        return batch
    images = normalise(batch.tensors, image_extents(batch.mask))
    return NestedTensor(images, batch.mask, checked=True)


def _loss_statistics(criterion, outputs: dict, targets: list[dict]) -> dict[str, Tensor]:
    num_queries = outputs["pred_logits"].shape[1]
    # Of this process alone: processes may have different numbers of batches, and would wait for
    # each other for ever.
    normalizer = criterion.normalizer(targets, num_queries, over_processes=False)
    losses = criterion(outputs, targets, normalizer)
    weights = criterion.weight_dict
    scaled = {name: loss * weights[name] for name, loss in losses.items() if name in weights}
    statistics = {"loss": criterion.total(losses), **scaled}
    if "class_error" in losses:
        statistics["class_error"] = losses["class_error"]
    statistics.update({f"{name}_unscaled": loss for name, loss in losses.items()})
    return statistics


class _Averages:
    """Running means that stay on the device until the end.

    The class error of a batch without objects is not a number, and is left out of its mean; a loss
    that is not a number makes its mean not a number, as it should.
    """

    def __init__(self):
        self._names: list[str] = []
        self._total: Tensor | None = None  # (2, n): sums and counts

    def add(self, statistics: Mapping[str, Tensor]) -> None:
        values = torch.stack([value.detach().double() for value in statistics.values()])
        if self._total is None:
            self._names = list(statistics)
            self._is_error = torch.tensor(
                [name.startswith("class_error") for name in self._names], device=values.device
            )
            self._total = values.new_zeros(2, len(values))
        counted = ~(self._is_error & values.isnan())
        self._total += torch.stack([values.where(counted, 0), counted.double()])

    def over_processes(self) -> dict[str, float]:
        mine = {}
        if self._total is not None:
            mine = dict(zip(self._names, self._total.T.tolist(), strict=True))
        everyones = [mine]
        if dist.is_available() and dist.is_initialized():
            everyones = [{}] * dist.get_world_size()
            dist.all_gather_object(everyones, mine)
        averages = {}
        for name in max(everyones, key=len):
            sums, counts = zip(*(part[name] for part in everyones if name in part), strict=True)
            averages[name] = sum(sums) / sum(counts) if sum(counts) else math.nan
        return averages


def _in_float32(outputs):
    """16-bit tensors of a nest of dictionaries and lists as float32."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if isinstance(outputs, Mapping):
        return {name: _in_float32(value) for name, value in outputs.items()}
    return [_in_float32(value) for value in outputs]


def _with_bar(loader, progress: bool):
    if not progress:
        return loader
    from tqdm import tqdm

    return tqdm(loader, desc="evaluate", unit="batch", leave=False, file=sys.stderr)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@functools.cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)

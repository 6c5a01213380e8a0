"""What the losses of a step are divided by, counted before the model has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import distributed
from .targets import PackedTargets


@dataclass(frozen=True)
class LossNormalizer:
    """What sums over a batch are divided by. All of it is known before the model has run.

    The values are those of the whole batch of a step, over processes and micro-batches, divided by
    the number of processes, because DistributedDataParallel averages gradients over processes. So
    losses and gradients, added over micro-batches and averaged over processes, are those of the
    joined batch in one process. Each value is a number or a tensor of no dimensions.

    Attributes:
        boxes: number of target boxes, at least one over all processes.
        class_weight: sum of the class weights of all queries.
        matched: number of matched targets.
        images: number of images.
        auxiliary: the same for the auxiliary layers where these repeat the targets, else None.
    """

    boxes: float | Tensor
    class_weight: float | Tensor
    matched: float | Tensor
    images: float | Tensor
    auxiliary: LossNormalizer | None = None


def count_normalizer(
    packed: PackedTargets,
    num_queries: int,
    eos_coef: float,
    aux_repeats: int = 1,
    *,
    over_processes: bool = True,
    device: torch.device | str | None = None,
) -> LossNormalizer:
    """Counts the targets of a step; see `SetCriterion.normalizer`."""
    sets = [packed]
    if aux_repeats > 1:
        sets.append(packed.repeated(aux_repeats, num_queries))
    counts: Sequence[float | Tensor] = [
        count
        for each in sets
        for count in (each.num_targets(), each.num_matched(num_queries), each.num_images)
    ]
    if packed.counts is not None:
        counts = [_as_double(count, packed.labels.device) for count in counts]
    processes = distributed.world_size() if over_processes else 1
    if processes > 1:
        # One row of numbers that float64 holds exactly, and rounded only by the division.
        row = torch.stack([_as_double(count, packed.labels.device) for count in counts])
        row = row.to(device or row.device, non_blocking=True)
        counts = (distributed.all_reduce_sum(row) / processes).unbind()
    last, *auxiliary = (
        _divisors(*counts[i : i + 3], num_queries, eos_coef, processes)
        for i in range(0, len(counts), 3)
    )
    return replace(last, auxiliary=auxiliary[0]) if auxiliary else last


def _divisors(
    boxes: float | Tensor,
    matched: float | Tensor,
    images: float | Tensor,
    num_queries: int,
    eos_coef: float,
    processes: int,
) -> LossNormalizer:
    boxes = boxes.clamp(min=1 / processes) if isinstance(boxes, Tensor) else max(boxes, 1)
    class_weight = matched + eos_coef * (images * num_queries - matched)
    return LossNormalizer(boxes, class_weight, matched, images)


def _as_double(count: float | Tensor, device: torch.device) -> Tensor:
    """A tensor of no dimensions; a number is written by the device itself, without a copy to it."""
    if isinstance(count, Tensor):
        return count.double()
    return torch.full((), count, dtype=torch.float64, device=device)

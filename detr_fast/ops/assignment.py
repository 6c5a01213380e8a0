"""Linear sum assignment for batches of rectangular cost matrices."""

import torch
from torch import Tensor

from ..reference import assignment as reference
from ._library import check_floating, define


def linear_assignment(cost: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Gives every row a column of its own at the smallest total cost, for a batch of problems.

    Augmenting row reduction (Jonker and Volgenant, Computing 38, 1987), then shortest augmenting
    paths (Crouse, IEEE TAES 52(4), 2016) with float64 duals: the answer is optimal for the costs
    as given. It depends on nothing but its own problem: not on the rest of the batch, the memory
    layout, the number of threads or the vector width. Between equal optima the compiled kernels
    choose by the rule in csrc/lap.h, with the smaller side as rows. The reference, which runs
    where there is no compiled kernel, chooses as SciPy does.

    Args:
        cost: (B, N, M) float16, bfloat16, float32 or float64, any strides. +inf forbids a pair.
            Half precision is solved as float32. Not differentiable.
        sizes: (B, 2) int64 on the device of `cost` or on the CPU, optional: problem b is
            `cost[b, :n, :m]` with `n, m = sizes[b]`. What lies outside is never read. Sizes on a
            GPU are not checked, which would mean waiting for it: one that is not within the
            matrices counts as the nearest that is.

    Returns:
        (B, N) int64: the column of each row, -1 for a row left over; min(n, m) rows have a column.
        Where +inf leaves no full matching, or a problem contains NaN or -inf, all its rows are -1.

    Raises:
        TypeError: `cost` is not floating, or `sizes` not int64.
        ValueError: a shape does not agree, or a size on the CPU is not within the matrices.
    """
    check_floating("cost", cost)
    if cost.dim() != 3:
        raise ValueError(
            f"cost has shape {tuple(cost.shape)}: use (B, N, M), one matrix a problem "
            "(cost[None] for a single one)."
        )
    if sizes is not None:
        if sizes.dtype != torch.int64:
            raise TypeError(f"sizes has dtype {sizes.dtype}: use int64.")
        if sizes.dim() != 2 or sizes.shape[0] != cost.shape[0] or sizes.shape[1] != 2:
            raise ValueError(
                f"sizes has shape {tuple(sizes.shape)}: use ({cost.shape[0]}, 2), the rows and "
                "columns of each problem."
            )
    return _operation(cost, sizes)


def _fake(cost: Tensor, sizes: Tensor | None = None) -> Tensor:
    return cost.new_empty(cost.shape[:2], dtype=torch.int64)


_operation = define(
    "linear_assignment(Tensor cost, Tensor? sizes=None) -> Tensor",
    reference.linear_assignment,
    _fake,
)

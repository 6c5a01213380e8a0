"""Linear sum assignment with the duals that prove each answer."""

import torch
from torch import Tensor

from ..reference import certificate as reference
from ._library import check_floating, define


def certified_assignment(cost: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solves assignment problems as `linear_assignment` does, and says how far from optimal it is.

    With the duals anyone can check an answer without solving the problem: if `u[i] + v[j]` is at
    most `cost[i, j]` everywhere, and the duals of the larger side are at most 0, then no assignment
    costs less than their sum (linear programming duality).

    Args:
        cost: (B, N, M) float16, bfloat16, float32 or float64, any strides. +inf forbids a pair.
            Half precision is solved as float32. Not differentiable.

    Returns:
        columns: (B, N) int64, that of `linear_assignment`.
        u: (B, N) float64, the duals of the rows.
        v: (B, M) float64, the duals of the columns.
        gap: (B,) float64, the cost of the answer minus the sum of the duals: no other assignment
            is cheaper by more than this. At least 0, and 0 but for rounding.

        For a problem without an answer (all its `columns` -1) the others are NaN.

    Raises:
        TypeError: `cost` is not floating.
        ValueError: `cost` does not have three dimensions.
    """
    check_floating("cost", cost)
    if cost.dim() != 3:
        raise ValueError(
            f"cost has shape {tuple(cost.shape)}: use (B, N, M), one matrix a problem "
            "(cost[None] for a single one)."
        )
    return _operation(cost)


def _fake(cost: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, rows, columns = cost.shape
    return (
        cost.new_empty((batch, rows), dtype=torch.int64),
        cost.new_empty((batch, rows), dtype=torch.float64),
        cost.new_empty((batch, columns), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.float64),
    )


_operation = define(
    "certified_assignment(Tensor cost) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.certified_assignment,
    _fake,
)

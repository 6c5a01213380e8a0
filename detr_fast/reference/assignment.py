"""Rectangular linear sum assignment, one SciPy call a problem."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment as scipy_linear_sum_assignment
from torch import Tensor


def linear_assignment(cost: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Solves a batch of assignment problems (Crouse, IEEE TAES 52(4), 2016, through SciPy).

    Args:
        cost: (B, N, M) of any floating dtype; solved in float64. +inf forbids a pair.
        sizes: (B, 2) int64, optional: problem b is `cost[b, :n, :m]` with `n, m = sizes[b]`.

    Returns:
        (B, N) int64 on the device of `cost`: the column of each row, -1 for a row left over. A
        problem without a full matching, or one with NaN or -inf in it, has -1 everywhere. Between
        equal optima the choice is SciPy's.

    Raises:
        ValueError: a size is negative or larger than the matrices.
    """
    batch, rows, columns = cost.shape
    matrices = cost.detach().to("cpu", torch.float64).numpy()
    extents = [(rows, columns)] * batch if sizes is None else sizes.tolist()
    columns_of_rows = np.full((batch, rows), -1, dtype=np.int64)
    for b, (n, m) in enumerate(extents):
        if not (0 <= n <= rows and 0 <= m <= columns):
            raise ValueError(
                f"sizes[{b}] is ({n}, {m}), but the cost matrices are {rows} x {columns}: "
                "give each problem a size within them."
            )
        try:
            i, j = scipy_linear_sum_assignment(matrices[b, :n, :m])
        except ValueError:  # infeasible, NaN or -inf: every row stays -1
            continue
        columns_of_rows[b, i] = j
    return torch.from_numpy(columns_of_rows).to(cost.device)

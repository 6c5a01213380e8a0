"""Optimal assignments with the duals that prove them: SciPy, then shortest paths."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def certified_assignment(cost: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solves a batch of assignment problems and proves each answer.

    Args:
        cost: (B, N, M) of any floating dtype; solved in float64. +inf forbids a pair.

    Returns:
        `columns` (B, N) int64 as of `linear_assignment`, `u` (B, N), `v` (B, M) and `gap` (B,), all
        float64 and on the device of `cost`; NaN for a problem without an answer.
    """
    batch, rows, columns = cost.shape
    matrices = cost.detach().to("cpu", torch.float64).numpy()
    answer = np.full((batch, rows), -1, dtype=np.int64)
    u, v = np.full((batch, rows), np.nan), np.full((batch, columns), np.nan)
    gap = np.full(batch, np.nan)
    for b, matrix in enumerate(matrices):
        try:
            i, j = linear_sum_assignment(matrix)
        except ValueError:  # infeasible, NaN or -inf
            continue
        answer[b, i] = j
        if rows <= columns:
            u[b], v[b] = duals(matrix, j)
        else:
            v[b], u[b] = duals(matrix.T, i[np.argsort(j)])
        gap[b] = (matrix[i, j] - u[b, i] - v[b, j]).sum()
    return tuple(torch.from_numpy(array).to(cost.device) for array in (answer, u, v, gap))


def duals(cost: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dual variables of rows and columns for an optimal assignment with rows <= columns.

    The dual of a column is minus what an exchange of columns could save the row that has it, found
    as a shortest path (Bellman-Ford). No exchange with a free column saves anything: those have 0.
    """
    matched = cost[np.arange(len(columns)), columns]
    v = np.zeros(cost.shape[1])
    for _ in range(len(columns)):
        through = (v[columns] - matched)[:, None] + cost
        v = np.minimum(v, through.min(axis=0, initial=0))
    free = np.setdiff1d(np.arange(cost.shape[1]), columns)
    v[free] = 0  # rounding aside it is
    return (cost - v).min(axis=1, initial=np.inf), v

"""Other solvers of the same problem, each called as its own documentation says.

A peer takes float32 costs (B, N, M) and gives two functions: one without arguments that solves
them, which is what is timed, and one that makes of its result the rows and columns of the pairs of
each problem. A peer that is not installed raises ImportError.
"""

from collections.abc import Callable

import numpy as np
import torch


def detr_fast(costs: np.ndarray):
    from detr_fast import linear_assignment

    tensor = torch.from_numpy(costs)
    return lambda: linear_assignment(tensor), pairs


def scipy(costs: np.ndarray):
    from scipy.optimize import linear_sum_assignment

    return lambda: [linear_sum_assignment(cost) for cost in costs], list


def lapx(function: str) -> Callable:
    def peer(costs: np.ndarray):
        import lap

        solve = getattr(lap, function)
        wide = costs.shape[1] != costs.shape[2]
        return lambda: [solve(cost, extend_cost=wide, return_cost=False) for cost in costs], list

    peer.__name__ = f"lapx-{function}"
    return peer


def py_lap_solver(costs: np.ndarray):
    from py_lap_solver.solvers.batched_scipy_solver import BatchedScipySolver

    solver = BatchedScipySolver(use_openmp=torch.get_num_threads() > 1)
    return lambda: solver.batch_solve(costs), pairs


def torch_linear_assignment(costs: np.ndarray):
    from torch_linear_assignment import batch_linear_assignment

    tensor = torch.from_numpy(costs)
    return lambda: batch_linear_assignment(tensor), pairs


def pairs(columns_of_rows) -> list[tuple[np.ndarray, np.ndarray]]:
    answers = np.asarray(columns_of_rows)
    return [(np.flatnonzero(columns >= 0), columns[columns >= 0]) for columns in answers]


ASSIGNMENT = (
    detr_fast,
    scipy,
    lapx("lapjvx"),
    lapx("lapjvs"),
    lapx("lapjvh"),
    lapx("lapjvr"),
    py_lap_solver,
    torch_linear_assignment,
)

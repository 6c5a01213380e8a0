"""Assignment problems for tests: awkward matrices, and answers to compare with."""

import itertools
import math

import numpy as np
from scipy.optimize import linear_sum_assignment

KINDS = (
    "uniform",
    "normal",
    "integers",
    "constant",
    "repeated_rows",
    "repeated_columns",
    "forbidden",
    "mostly_forbidden",
    "denormal",
    "huge",
    "near_the_limit",
    "negative_zero",
    "mixed_magnitudes",
    "rank_one",
    "detr",
)


def problem(rng: np.random.Generator, rows: int, columns: int, kind: str) -> np.ndarray:
    """A float32 cost matrix of the named kind."""
    shape = (rows, columns)
    if 0 in shape:
        return np.zeros(shape, dtype=np.float32)
    if kind == "uniform":
        cost = rng.random(shape)
    elif kind == "normal":
        cost = rng.standard_normal(shape)
    elif kind == "integers":
        cost = rng.integers(-3, 4, shape)
    elif kind == "constant":
        cost = np.full(shape, rng.integers(-2, 3))
    elif kind == "repeated_rows":
        cost = rng.random((1 + rows // 3, columns))[rng.integers(0, 1 + rows // 3, rows)]
    elif kind == "repeated_columns":
        cost = rng.random((rows, 1 + columns // 3))[:, rng.integers(0, 1 + columns // 3, columns)]
    elif kind in ("forbidden", "mostly_forbidden"):
        share = 0.3 if kind == "forbidden" else 0.85
        cost = np.where(rng.random(shape) < share, np.inf, rng.integers(0, 9, shape))
    elif kind == "denormal":
        cost = rng.integers(-5, 6, shape) * 1e-45
    elif kind == "huge":
        cost = np.where(rng.random(shape) < 0.4, 1e30, rng.random(shape) * 1e30)
    elif kind == "near_the_limit":
        cost = np.where(rng.random(shape) < 0.4, 3e38, rng.integers(-3, 4, shape) * 1e38)
    elif kind == "negative_zero":
        cost = rng.choice([0.0, -0.0, 1.0], shape)
    elif kind == "mixed_magnitudes":
        cost = np.where(rng.random(shape) < 0.2, 1e9, rng.random(shape))
    elif kind == "rank_one":
        # Every pair of rows wants the same columns in the same order: the longest paths.
        cost = np.outer(np.arange(1, rows + 1), np.arange(1, columns + 1))
    else:
        # Few good columns for each row and a background of bad ones, as trained predictions have.
        cost = rng.random(shape) * 4 + 1
        for row in range(rows):
            near = rng.integers(0, columns, 4)
            cost[row, near] = rng.random(4) * 1.5 - 2
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(cost, dtype=np.float32)


def optimum(cost: np.ndarray) -> float | None:
    """SciPy's optimal cost, summed exactly; None where there is no full matching."""
    try:
        return total(cost, *linear_sum_assignment(cost))
    except ValueError:
        return None


def total(cost: np.ndarray, rows, columns) -> float:
    return math.fsum(float(cost[i, j]) for i, j in zip(rows, columns, strict=True))


def brute_force(cost: np.ndarray) -> float | None:
    """The optimal cost by trying every matching; None where +inf blocks all of them."""
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    rows = range(cost.shape[0])
    choices = itertools.permutations(range(cost.shape[1]), cost.shape[0])
    best = min((total(cost, rows, columns) for columns in choices), default=0.0)
    return None if best == math.inf else best


def assert_optimal(cost: np.ndarray, columns_of_rows: np.ndarray, context: str = "") -> None:
    """Checks one answer of `linear_assignment`: valid, and as cheap as SciPy's."""
    expected = optimum(cost)
    rows = np.flatnonzero(columns_of_rows >= 0)
    columns = columns_of_rows[rows]
    if expected is None:
        assert len(rows) == 0, f"{context}: matched, though there is no full matching"
        return
    assert len(rows) == min(cost.shape), f"{context}: {len(rows)} rows of {cost.shape} matched"
    assert len(set(columns.tolist())) == len(columns), f"{context}: a column was taken twice"
    found = total(cost, rows, columns)
    # Both sums are exact; what is left is the float64 rounding of the duals on either side.
    largest = max((abs(float(cost[i, j])) for i, j in zip(rows, columns, strict=True)), default=0.0)
    assert abs(found - expected) <= 1e-12 * largest, f"{context}: cost {found}, SciPy {expected}"

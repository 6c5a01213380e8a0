"""What the benchmarks run on, in one place."""

from dataclasses import dataclass

import numpy as np

ASSIGNMENT_QUERIES = (100, 300, 900)
ASSIGNMENT_TARGETS = (7, 30, 100)
ASSIGNMENT_SQUARES = (300, 500, 1000)
ASSIGNMENT_BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class AssignmentWorkload:
    """A batch of cost matrices of one shape.

    Attributes:
        batch: number of problems.
        targets: rows of each, M.
        queries: columns of each, Q.
        contiguous: which side is contiguous in memory, "queries" for (B, M, Q) and "targets" for
            (B, Q, M).
        predictions: "untrained" for uniform costs, "trained" for a few good queries to a target
            before a background of bad ones.
    """

    batch: int
    targets: int
    queries: int
    contiguous: str = "queries"
    predictions: str = "trained"

    def __str__(self) -> str:
        shape = (self.targets, self.queries)
        rows, columns = shape if self.contiguous == "queries" else shape[::-1]
        return f"{self.batch}x{rows}x{columns}-{self.predictions}"

    def costs(self) -> np.ndarray:
        """float32 costs, C-contiguous in the layout that `contiguous` names."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.targets, self.queries)
        cost = rng.random(shape, dtype=np.float32)
        if self.predictions == "trained":
            good = rng.integers(0, self.queries, (*shape[:2], 4))
            cost = cost * 4 + 1
            values = rng.random(good.shape, dtype=np.float32) * 1.5 - 2
            np.put_along_axis(cost, good, values, axis=2)
        return cost if self.contiguous == "queries" else cost.transpose(0, 2, 1).copy()


def assignment_workloads() -> list[AssignmentWorkload]:
    """Few targets and many queries in both layouts, then squares, then other batches."""
    few = [
        AssignmentWorkload(64, m, q, contiguous, predictions)
        for q in ASSIGNMENT_QUERIES
        for m in ASSIGNMENT_TARGETS
        for contiguous in ("queries", "targets")
        for predictions in ("trained", "untrained")
    ]
    squares = [
        AssignmentWorkload(8, n, n, "queries", predictions)
        for n in ASSIGNMENT_SQUARES
        for predictions in ("trained", "untrained")
    ]
    batches = [AssignmentWorkload(b, 30, 300) for b in ASSIGNMENT_BATCHES if b != 64]
    return few + squares + batches

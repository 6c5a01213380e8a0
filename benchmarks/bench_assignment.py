"""linear_assignment against other solvers, the answers checked before they are timed.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_assignment.py \
        --benchmark-json=assignment.json
    python benchmarks/report.py assignment.json --out benchmarks/results/MACHINE

Threads as OMP_NUM_THREADS says. Peers: `pip install --no-build-isolation ".[bench]"`.
"""

import numpy as np
import pytest
import workloads
from peers import ASSIGNMENT

# An optimum in float64 against that of a solver in float32, for costs of order one.
SAME_COST = 1e-3


@pytest.mark.parametrize("peer", ASSIGNMENT, ids=lambda peer: peer.__name__)
@pytest.mark.parametrize("workload", workloads.assignment_workloads(), ids=str)
def test_assignment(benchmark, workload, peer):
    costs = workload.costs()
    try:
        solve, pairs = peer(costs)
    except ImportError as error:
        pytest.skip(str(error))
    expected, _ = ASSIGNMENT[1](costs)
    for cost, ours, theirs in zip(costs, pairs(solve()), expected(), strict=True):
        assert len(ours[0]) == len(theirs[0])
        difference = cost[ours].sum(dtype=np.float64) - cost[theirs].sum(dtype=np.float64)
        assert abs(difference) < SAME_COST
    benchmark.extra_info |= {"subject": peer.__name__, **vars(workload)}
    benchmark(solve)

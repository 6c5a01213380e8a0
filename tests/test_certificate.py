"""certified_assignment: duals that prove the answer, and a gap that says what they leave open."""

import numpy as np
import pytest
import tolerances
import torch
from problems import KINDS, problem, total

from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.certificate import certified_assignment
from detr_fast.reference import certificate as reference

IMPLEMENTATIONS = {
    "operation": certified_assignment,
    "reference": reference.certified_assignment,
}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def assert_proven(cost: np.ndarray, columns, u, v, gap) -> None:
    """Checks a certificate from first principles: feasible duals, and a gap that is theirs."""
    largest = np.abs(cost[np.isfinite(cost)]).max(initial=0)
    tolerance = tolerances.CERTIFICATE_FLOAT64 * max(largest, np.abs(u).max(initial=0))
    rows = np.flatnonzero(columns >= 0)
    assert len(rows) == min(cost.shape)
    assert (u[:, None] + v <= cost + tolerance).all()
    larger = v if cost.shape[0] <= cost.shape[1] else u
    assert cost.shape[0] == cost.shape[1] or (larger <= 0).all()
    bound = float(u.sum() + v.sum())
    found = total(cost, rows, columns[rows])
    assert 0 <= gap <= tolerance * max(1, len(rows))
    assert abs(found - bound - gap) <= tolerance * max(1, sum(cost.shape))


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_proven(kind, implementation):
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (3, 5), (5, 3), (7, 7), (4, 40), (40, 4), (33, 33), (20, 50)):
        cost = problem(rng, *shape, kind)
        columns, u, v, gap = (x[0].numpy() for x in implementation(torch.from_numpy(cost)[None]))
        if (columns < 0).all():
            assert np.isnan(u).all()
            assert np.isnan(v).all()
            assert np.isnan(gap)
        else:
            assert_proven(cost.astype(np.float64), columns, u, v, gap)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_assignment_is_that_of_linear_assignment(dtype):
    cost = torch.rand(4, 30, 60).to(dtype)
    for layout in (cost, cost.transpose(1, 2), cost[:, ::2, ::3]):
        assert torch.equal(certified_assignment(layout)[0], linear_assignment(layout))


def test_the_reference_is_agreed_with_where_the_optimum_is_unique():
    cost = torch.rand(6, 12, 20, dtype=torch.float64)
    assert torch.equal(certified_assignment(cost)[0], reference.certified_assignment(cost)[0])


def test_a_large_problem_is_proven():
    cost = np.random.default_rng(2).random((300, 300))
    columns, u, v, gap = (x[0].numpy() for x in certified_assignment(torch.from_numpy(cost)[None]))
    assert_proven(cost, columns, u, v, gap)


@pytest.mark.parametrize("shape", [(0, 0, 0), (2, 0, 5), (2, 5, 0), (0, 3, 4)])
def test_empty_problems(shape, implementation):
    columns, u, v, gap = implementation(torch.empty(shape))
    assert columns.shape == u.shape == shape[:2]
    assert v.shape == (shape[0], shape[2])
    assert (columns == -1).all()
    for zeros in (u, v, gap):
        assert (zeros == 0).all()


def test_a_problem_without_an_answer_has_no_duals(implementation):
    cost = torch.rand(3, 4, 5)
    cost[0, 1] = float("inf")
    cost[1, 2, 2] = float("nan")
    columns, u, v, gap = implementation(cost)
    assert (columns[:2] == -1).all()
    assert (columns[2] >= 0).all()
    for values in (u, v, gap):
        assert values[:2].isnan().all()
        assert not values[2].isnan().any()


def test_entries_near_the_limit_of_float64_are_proven():
    rng = np.random.default_rng(3)
    cost = rng.integers(0, 2**20, (8, 11)) * 2.0**1000
    columns, u, v, gap = (x[0].numpy() for x in certified_assignment(torch.from_numpy(cost)[None]))
    down = 2.0**-1000
    assert_proven(cost * down, columns, u * down, v * down, gap * down)


# --- the dispatcher -------------------------------------------------------------------------------


def test_opcheck():
    torch.library.opcheck(torch.ops.detr_fast.certified_assignment.default, (torch.rand(2, 4, 5),))


def test_compiles_without_graph_breaks_or_recompiles():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda cost: certified_assignment(cost)[3] * 2,
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 5, 9), (3, 30, 7), (4, 6, 6)):
            cost = torch.rand(shape)
            assert torch.equal(compiled(cost), certified_assignment(cost)[3] * 2)


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match=r"cost has shape \(3, 4\): use \(B, N, M\)"):
        certified_assignment(torch.rand(3, 4))
    with pytest.raises(TypeError, match=r"cost has dtype torch.int64"):
        certified_assignment(torch.ones(1, 2, 2, dtype=torch.int64))

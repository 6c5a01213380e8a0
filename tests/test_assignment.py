"""linear_assignment: optimal, whatever the matrices, their layout and the batch around them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import KINDS, assert_optimal, brute_force, problem, total

from detr_fast.ops.assignment import linear_assignment
from detr_fast.reference import assignment as reference

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMPLEMENTATIONS = {"operation": linear_assignment, "reference": reference.linear_assignment}


def solve(cost: np.ndarray) -> np.ndarray:
    return linear_assignment(torch.from_numpy(cost)[None])[0].numpy()


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_no_matching_is_cheaper(kind, implementation):
    rng = np.random.default_rng(1)
    for rows in range(6):
        for columns in range(6):
            cost = problem(rng, rows, columns, kind)
            answer = implementation(torch.from_numpy(cost)[None])[0].numpy()
            expected = brute_force(cost)
            matched = np.flatnonzero(answer >= 0)
            if expected is None:
                assert len(matched) == 0
            else:
                assert len(matched) == min(rows, columns)
                assert total(cost, matched, answer[matched]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(7, 300), (300, 7), (100, 100), (30, 33), (1, 1), (64, 200)])
def test_optimal_for_every_dtype(shape, dtype):
    cost = torch.rand(3, *shape).to(dtype)
    answers = linear_assignment(cost)
    for matrix, answer in zip(cost.double().numpy(), answers.numpy(), strict=True):
        assert_optimal(matrix, answer)


def test_float64_costs_are_not_rounded():
    cost = torch.ones(1, 2, 2, dtype=torch.float64)
    cost[0, 0, 0] -= 1e-12
    cost[0, 1, 0] -= 3e-12
    assert linear_assignment(cost).tolist() == [[1, 0]]


@pytest.mark.parametrize("shape", [(300, 300), (350, 1000), (1000, 1000)])
def test_optimal_for_large_problems(shape):
    rng = np.random.default_rng(2)
    for kind in ("uniform", "integers", "detr"):
        cost = problem(rng, *shape, kind)
        assert_optimal(cost, solve(cost), kind)


@pytest.mark.parametrize("shape", [(0, 0, 0), (2, 0, 5), (2, 5, 0), (0, 3, 4)])
def test_empty_problems(shape, implementation):
    answer = implementation(torch.empty(shape))
    assert answer.shape == shape[:2]
    assert answer.dtype == torch.int64
    assert (answer == -1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_an_invalid_entry_leaves_its_problem_unassigned(bad, implementation):
    cost = torch.rand(5, 20, 30)
    expected = implementation(cost)
    for b, (i, j) in {1: (0, 0), 2: (19, 29), 3: (7, 17)}.items():
        cost[b, i, j] = bad
    answer = implementation(cost)
    assert (answer[1:4] == -1).all()
    assert torch.equal(answer[[0, 4]], expected[[0, 4]])


def test_forbidden_pairs_are_never_chosen(implementation):
    cost = torch.full((1, 3, 3), float("inf"))
    cost[0, [0, 1, 2], [2, 0, 1]] = torch.tensor([5.0, 7.0, 9.0])
    assert implementation(cost).tolist() == [[2, 0, 1]]
    cost[0, 1, 0] = float("inf")
    assert implementation(cost).tolist() == [[-1, -1, -1]]


# --- fuzz -----------------------------------------------------------------------------------------


def fuzz(problems: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for k in range(problems):
        kind = KINDS[k % len(KINDS)]
        rows, columns = rng.integers(0, 65 if k % 8 == 0 else 17, 2)
        cost = problem(rng, rows, columns, kind)
        if k % 5 == 0:
            cost = cost.astype(np.float64)
            if kind == "uniform":
                cost = rng.random((rows, columns))
        assert_optimal(cost, solve(cost), f"problem {k} of seed {seed}, {kind}, {rows}x{columns}")


def test_fuzz():
    fuzz(5_000, seed=3)


@pytest.mark.slow
def test_fuzz_at_length():
    fuzz(100_000, seed=4)


@pytest.mark.slow
def test_fuzz_of_large_problems():
    rng = np.random.default_rng(5)
    for k in range(300):
        rows, columns = rng.integers(65, 1001, 2)
        kind = KINDS[k % len(KINDS)]
        if kind == "rank_one":
            rows = rows % 150
        cost = problem(rng, rows, columns, kind)
        assert_optimal(cost, solve(cost), f"problem {k}, {kind}, {rows}x{columns}")


# --- properties -----------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from([kind for kind in KINDS if kind not in ("forbidden", "mostly_forbidden")])


def cost_of(cost: np.ndarray, answer: np.ndarray) -> float:
    rows = np.flatnonzero(answer >= 0)
    return total(cost, rows, answer[rows])


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, kinds)
def test_every_row_or_every_column_is_matched_once(shape, seed, kind):
    answer = solve(problem(np.random.default_rng(seed), *shape, kind))
    matched = answer[answer >= 0]
    assert len(matched) == len(set(matched.tolist())) == min(shape)
    assert (matched < shape[1]).all()


@settings(max_examples=60, deadline=None)
@given(shapes, seeds)
def test_the_cost_does_not_depend_on_the_order_of_rows_and_columns(shape, seed):
    rng = np.random.default_rng(seed)
    cost = problem(rng, *shape, "integers")
    shuffled = cost[rng.permutation(shape[0])][:, rng.permutation(shape[1])].copy()
    assert cost_of(cost, solve(cost)) == cost_of(shuffled, solve(shuffled))


@settings(max_examples=60, deadline=None)
@given(shapes, seeds)
def test_the_cost_of_the_transpose_is_the_same(shape, seed):
    cost = problem(np.random.default_rng(seed), *shape, "integers")
    transposed = cost.T.copy()
    assert cost_of(cost, solve(cost)) == cost_of(transposed, solve(transposed))


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, st.integers(-50, 50))
def test_a_constant_added_to_a_matched_row_moves_the_cost_by_it(shape, seed, shift):
    shape = (min(shape), max(shape))
    cost = problem(np.random.default_rng(seed), *shape, "integers")
    moved = cost.copy()
    moved[seed % shape[0]] += shift
    assert cost_of(moved, solve(moved)) == cost_of(cost, solve(cost)) + shift


# --- one problem, one answer ----------------------------------------------------------------------


def with_ties(batch: int, rows: int, columns: int) -> torch.Tensor:
    return torch.randint(0, 6, (batch, rows, columns)).float()


@pytest.mark.parametrize("shape", [(7, 100), (100, 7), (40, 40)])
def test_the_batch_around_a_problem_does_not_change_it(shape):
    cost = with_ties(9, *shape)
    together = linear_assignment(cost)
    for b in range(9):
        assert torch.equal(linear_assignment(cost[b : b + 1])[0], together[b])


@pytest.mark.parametrize(
    "shape", [(7, 100), (100, 7), (20, 90), (40, 40), (3, 5), (50, 131), (70, 90), (131, 260)]
)
@pytest.mark.parametrize("costs", ["ties", "few ties", "forbidden", "float64"])
def test_strides_do_not_change_the_answer(shape, costs):
    cost = with_ties(4, *shape)
    if costs == "few ties":
        cost = torch.randint(0, 99, cost.shape).float()
    elif costs == "forbidden":
        cost[torch.rand(cost.shape) < 0.2] = float("inf")
    elif costs == "float64":
        cost = torch.randint(0, 99, cost.shape).double()
    expected = linear_assignment(cost)

    def wide():
        return torch.full((4, 2 * shape[0], 3 * shape[1]), float("nan"), dtype=cost.dtype)

    layouts = {
        "columns first": cost.transpose(1, 2).contiguous().transpose(1, 2),
        "batch last": cost.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "every other": wide()[:, ::2, ::3].copy_(cost),
        "an offset": wide()[:, 1 : 1 + shape[0], 2 : 2 + shape[1]].copy_(cost),
        "one row stride": cost[:1].expand(4, -1, -1),
    }
    for name, layout in layouts.items():
        answer = linear_assignment(layout)
        assert torch.equal(answer, expected[:1].expand(4, -1) if "one" in name else expected), name


def test_threads_do_not_change_the_answer():
    cost = with_ties(64, 30, 100)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            answers.append(linear_assignment(cost))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_sizes_select_a_corner_of_each_matrix(implementation):
    rng = np.random.default_rng(6)
    cost = torch.from_numpy(rng.random((6, 12, 20)))
    sizes = torch.tensor([[12, 20], [3, 20], [12, 4], [0, 7], [5, 0], [7, 7]])
    answer = implementation(cost, sizes)
    for b, (n, m) in enumerate(sizes.tolist()):
        alone = implementation(cost[b : b + 1, :n, :m])[0]
        assert torch.equal(answer[b, :n], alone)
        assert (answer[b, n:] == -1).all()


def test_what_lies_outside_of_sizes_is_not_read():
    cost = torch.full((2, 8, 9), float("nan"))
    cost[:, :3, :4] = torch.rand(2, 3, 4)
    answer = linear_assignment(cost, torch.tensor([[3, 4], [3, 4]]))
    assert torch.equal(answer[:, :3], linear_assignment(cost[:, :3, :4]))


# --- the dispatcher -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [None, torch.tensor([[3, 4], [0, 5]])])
def test_opcheck(sizes):
    torch.library.opcheck(
        torch.ops.detr_fast.linear_assignment.default, (torch.rand(2, 4, 5), sizes)
    )


def test_compiles_without_graph_breaks_or_recompiles():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda cost: linear_assignment(cost) * 2, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 5, 9), (3, 30, 7), (4, 6, 6), (5, 100, 300)):
            cost = torch.rand(shape)
            assert torch.equal(compiled(cost), linear_assignment(cost) * 2)


def test_is_not_differentiable():
    assert not linear_assignment(torch.rand(1, 3, 3, requires_grad=True)).requires_grad


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match=r"cost has shape \(3, 4\): use \(B, N, M\)"):
        linear_assignment(torch.rand(3, 4))
    with pytest.raises(TypeError, match=r"cost has dtype torch.int64"):
        linear_assignment(torch.ones(1, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"sizes has dtype torch.int32: use int64"):
        linear_assignment(torch.rand(1, 2, 2), torch.ones(1, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"sizes has shape \(2,\): use \(1, 2\)"):
        linear_assignment(torch.rand(1, 2, 2), torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("size", [[3, 5], [4, 4], [-1, 2]])
def test_a_size_outside_of_the_matrices_is_an_error(size, implementation):
    with pytest.raises(ValueError, match=r"sizes\[1\] is \(.*matrices are 3 x 4"):
        implementation(torch.rand(2, 3, 4), torch.tensor([[3, 4], size]))

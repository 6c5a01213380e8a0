"""linear_sum_assignment: a replacement for SciPy's, wrong input included."""

import threading

import numpy as np
import pytest
import scipy.optimize
from problems import KINDS, problem, total

from detr_fast.ops.scipy_compat import linear_sum_assignment

NAN, INF = float("nan"), float("inf")

VALID = {
    "list": [[4, 1, 3], [2, 0, 5], [3, 2, 2]],
    "tuple of tuples": ((1.5, 2.5), (0.5, 0.0)),
    "strings of numbers": [["3", "2"], ["1", "4"]],
    "bool": np.array([[True, False, True], [False, True, True]]),
    "int8": np.array([[-5, 3], [7, -2]], dtype=np.int8),
    "uint64": np.array([[2**63, 1], [3, 2**62]], dtype=np.uint64),
    "float16": np.array([[0.5, 1.5, 2.0]], dtype=np.float16),
    "big-endian": np.array([[3.0, 1.0], [1.0, 7.0]], dtype=">f8"),
    "big-endian float32": np.array([[3.0, 1.0], [1.0, 7.0]], dtype=">f4"),
    "matrix": np.matrix([[3.0, 1.0], [1.0, 7.0]]),
    "no rows": np.zeros((0, 3)),
    "no columns": np.zeros((3, 0)),
    "empty list in a list": [[]],
    "single": [[7.0]],
    "forbidden": [[INF, 1.0], [2.0, INF]],
}
INVALID = {
    "one dimension": [1, 2],
    "three dimensions": [[[1]]],
    "no dimension": 5,
    "empty list": [],
    "objects": np.array([[1, 2]], dtype=object),
    "text": np.array([["a", "b"]]),
    "complex": np.array([[1 + 2j]]),
    "time": np.array([[1, 2]], dtype="m8[s]"),
    "long double": np.array([[1, 2]], dtype=np.longdouble),
    "ragged": [[1, 2], [3]],
    "None": None,
    "NaN": [[1.0, NAN]],
    "minus infinity": [[1.0, -INF]],
    "infeasible": [[INF, INF], [1.0, 2.0]],
    "one column for two rows": [[1.0, INF], [2.0, INF]],
    "infeasible and NaN": [[INF, INF], [NAN, 1.0]],
}


def assert_same(cost, **options):
    expected = scipy.optimize.linear_sum_assignment(cost, **options)
    found = linear_sum_assignment(cost, **options)
    assert isinstance(found, tuple)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype == np.int64
        assert ours.shape == theirs.shape
    matrix = np.asarray(cost, dtype=np.float64)
    assert np.array_equal(found[0], expected[0]) or matrix.shape[0] > matrix.shape[1]
    assert (np.diff(found[0]) > 0).all()
    assert len(set(found[1].tolist())) == len(found[1])
    sums = [total(matrix, *answer) for answer in (found, expected)]
    largest = np.abs(matrix[found]).max(initial=0)
    assert abs(sums[0] - sums[1]) <= 1e-12 * largest


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", [name for name in VALID if name != "forbidden"])
def test_valid_input(name, maximize):
    assert_same(VALID[name], maximize=maximize)


def test_forbidden_pairs():
    assert_same(VALID["forbidden"])
    assert_same([[-INF, 1.0], [2.0, -INF]], maximize=True)


@pytest.mark.parametrize("name", INVALID)
def test_invalid_input_raises_what_scipy_raises(name):
    with pytest.raises((ValueError, TypeError)) as theirs:
        scipy.optimize.linear_sum_assignment(INVALID[name])
    with pytest.raises(type(theirs.value)) as ours:
        linear_sum_assignment(INVALID[name])
    assert str(ours.value) == str(theirs.value)


def test_plus_infinity_is_invalid_when_maximizing():
    with pytest.raises(ValueError, match="matrix contains invalid numeric entries"):
        linear_sum_assignment([[INF, 1.0]], maximize=True)


@pytest.mark.parametrize("truth", [1, "yes", [0], np.bool_(True)])
def test_maximize_takes_any_truth_value(truth):
    assert_same([[1.0, 2.0]], maximize=truth)


def test_wrong_calls():
    with pytest.raises(TypeError):
        linear_sum_assignment()
    with pytest.raises(TypeError):
        linear_sum_assignment([[1]], minimize=True)
    with pytest.raises(ValueError, match="truth value of an array"):
        linear_sum_assignment([[1]], maximize=np.array([True, False]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts(kind, dtype):
    rng = np.random.default_rng(0)
    for shape in ((9, 31), (31, 9), (20, 20), (3, 5)):
        cost = np.nan_to_num(problem(rng, *shape, kind).astype(dtype), posinf=50)
        big = np.full((3 * shape[0], 2 * shape[1]), np.nan, dtype=dtype)
        big[::3, ::2] = cost
        for layout in (cost, np.asfortranarray(cost), big[::3, ::2], cost[::-1, ::-1]):
            assert_same(layout)
            assert_same(layout, maximize=True)
        assert np.array_equal(
            linear_sum_assignment(cost)[1], linear_sum_assignment(big[::3, ::2])[1]
        )


def test_entries_between_other_fields():
    records = np.zeros((4, 6), dtype=[("tag", "i2"), ("cost", "f4"), ("weight", "f8")])
    records["cost"] = np.random.default_rng(0).random((4, 6))
    records["weight"] = np.random.default_rng(1).random((4, 6))
    assert_same(records["cost"])
    assert_same(records["weight"])
    aligned = np.zeros((4, 6), dtype=np.dtype([("a", "f4"), ("cost", "f8")], align=False))
    aligned["cost"] = records["weight"]
    assert_same(aligned["cost"])


def test_entries_near_the_limits_of_float64():
    rng = np.random.default_rng(2)
    cost = np.where(rng.random((12, 15)) < 0.4, 1.5e308, rng.random((12, 15)) * 1e308)
    found = linear_sum_assignment(cost)
    expected = scipy.optimize.linear_sum_assignment(cost * 2.0**-100)
    assert total(cost * 2.0**-100, *found) == pytest.approx(
        total(cost * 2.0**-100, *expected), rel=1e-12
    )


def test_the_input_is_not_changed():
    cost = np.random.default_rng(3).random((6, 8))
    before = cost.copy()
    cost.flags.writeable = False
    linear_sum_assignment(cost)
    linear_sum_assignment(cost, maximize=True)
    assert np.array_equal(cost, before)


def test_threads_solve_at_the_same_time():
    rng = np.random.default_rng(4)
    costs = [rng.integers(0, 9, (40, 60)).astype(np.float64) for _ in range(8)]
    expected = [linear_sum_assignment(cost)[1] for cost in costs]
    found = [None] * 8

    def solve(k):
        for _ in range(20):
            found[k] = linear_sum_assignment(costs[k])[1]

    threads = [threading.Thread(target=solve, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)

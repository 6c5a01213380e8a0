"""set_matching: the cheapest matching of every set and image, and nothing leaks between them."""

import itertools
import math

import pytest
import torch
from test_matching_cost import WEIGHTS, arguments, padded

from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.matching_cost import matching_cost
from detr_fast.ops.set_matching import set_matching
from detr_fast.reference import set_matching as reference

IMPLEMENTATIONS = {"operation": set_matching, "reference": reference.set_matching}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def matched_cost(cost: torch.Tensor, queries: torch.Tensor) -> float:
    chosen = cost.double().gather(2, queries.clamp(min=0)[..., None])[..., 0]
    return torch.where(queries >= 0, chosen, 0.0).sum(-1)


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_is_the_assignment_of_the_cost(dtype, class_cost):
    inputs = arguments(sets=3, queries=50, classes=92, counts=(7, 0, 1, 30, 50))
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    options = {"class_cost": class_cost, **WEIGHTS}
    queries = set_matching(*inputs, **options)
    cost = matching_cost(*inputs, **options)
    bounds = inputs[-1].tolist()
    for low, high in itertools.pairwise(bounds):
        assert torch.equal(queries[:, low:high], linear_assignment(cost[:, low:high]))


@pytest.mark.parametrize("counts", [(7, 0, 3), (60, 2), (), (0,), (100, 200, 45, 44)])
def test_costs_no_more_than_the_reference(counts):
    inputs = arguments(sets=2, queries=45, counts=counts)
    cost = matching_cost(*inputs, **WEIGHTS)
    ours = set_matching(*inputs, **WEIGHTS)
    theirs = reference.set_matching(*inputs, **WEIGHTS)
    assert ours.shape == theirs.shape == (2, sum(counts))
    # The two costs differ by float32 rounding, so near ties may be decided either way.
    torch.testing.assert_close(
        matched_cost(cost, ours), matched_cost(cost, theirs), rtol=1e-6, atol=1e-5
    )


def test_more_targets_than_queries(implementation):
    inputs = arguments(sets=2, queries=6, counts=(9, 2))
    queries = implementation(*inputs)
    assert (queries[:, :9] >= 0).sum(-1).tolist() == [6, 6]
    assert (queries[:, 9:] >= 0).all()
    for row in queries[:, :9]:
        assert row[row >= 0].sort().values.tolist() == list(range(6))


def test_no_queries(implementation):
    assert (implementation(*arguments(queries=0)) == -1).all()


def test_threads_and_layout_do_not_change_the_answer():
    inputs = arguments(sets=6, queries=100, counts=(5, 30, 0, 7, 64))
    expected = set_matching(*inputs)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(set_matching(*inputs), expected)
    finally:
        torch.set_num_threads(threads)
    logits, boxes, *targets = inputs
    strided = logits.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(
        set_matching(strided, boxes.transpose(0, 2).contiguous().transpose(0, 2), *targets),
        expected,
    )


@pytest.mark.parametrize("b", range(4))
def test_an_image_alone_has_the_answer_it_has_in_a_batch(b):
    logits, boxes, labels, target_boxes, offsets = arguments(counts=(5, 30, 0, 7))
    together = set_matching(logits, boxes, labels, target_boxes, offsets)
    own = slice(offsets[b], offsets[b + 1])
    alone = set_matching(
        logits[:, b : b + 1],
        boxes[:, b : b + 1],
        labels[own],
        target_boxes[own],
        torch.tensor([0, own.stop - own.start]),
    )
    assert torch.equal(alone, together[:, own])


# --- groups, a cost of the caller's, room for more targets ----------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 5, 20])
def test_groups_are_matched_as_if_each_were_alone(groups, implementation):
    logits, boxes, *targets = arguments(sets=3, queries=20, counts=(7, 0, 3))
    extra = torch.randn(3, 10, 20)
    matched = implementation(logits, boxes, *targets, extra_cost=extra, groups=groups)
    assert matched.shape == (3 * groups, 10)
    size = 20 // groups
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        alone = implementation(
            logits[:, :, own], boxes[:, :, own], *targets, extra_cost=extra[..., own]
        )
        assert torch.equal(matched[g::groups], torch.where(alone < 0, -1, alone + g * size))


def test_a_cost_of_the_callers_decides(implementation):
    inputs = arguments(queries=8, counts=(5, 2))
    wanted = torch.stack([torch.cat([torch.randperm(8)[:5], torch.randperm(8)[:2]]) for _ in "ab"])
    extra = torch.zeros(2, 7, 8).scatter_(2, wanted[..., None], -100.0)
    assert torch.equal(implementation(*inputs, extra_cost=extra), wanted)


@pytest.mark.parametrize("groups", [1, 4])
def test_room_for_targets_changes_no_match(groups, implementation):
    inputs = arguments(queries=40)
    wide, counts, index = padded(inputs)
    matched = implementation(*wide, counts=counts, groups=groups)
    assert torch.equal(matched[:, index], implementation(*inputs, groups=groups))
    matched[:, index] = -1
    assert (matched == -1).all()


# --- costs that are not finite --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
@pytest.mark.parametrize("queries_hit", [slice(None), slice(4, 5)])
def test_a_bad_image_does_not_change_the_others(queries_hit, where, bad, implementation):
    logits, boxes, labels, target_boxes, offsets = arguments(counts=(5, 8, 7))
    clean = implementation(logits, boxes, labels, target_boxes, offsets)
    hit = {"logits": logits, "boxes": boxes}[where]
    hit[:, 1, queries_hit] = bad
    queries = implementation(logits, boxes, labels, target_boxes, offsets)
    own = torch.zeros(20, dtype=torch.bool)
    own[5:13] = True
    assert torch.equal(queries[:, ~own], clean[:, ~own])
    for row in queries[:, own]:
        assert len(set(row.tolist())) == 8
        assert (row >= 0).all()


def test_a_bad_query_is_chosen_last(implementation):
    logits, boxes, labels, target_boxes, offsets = arguments(queries=8, counts=(7,))
    boxes[0, 0, 3] = math.nan
    logits[1, 0, 5] = math.nan
    queries = implementation(logits, boxes, labels, target_boxes, offsets)
    assert 3 not in queries[0]
    assert 5 not in queries[1]


def test_the_stand_in_for_costs_that_are_not_finite(implementation):
    logits, boxes, labels, target_boxes, offsets = arguments(queries=8, counts=(1,))
    boxes[:, 0, 3] = math.nan
    inputs = (logits, boxes, labels, target_boxes, offsets)
    assert (implementation(*inputs, non_finite_cost=-1e6) == 3).all()


def forbidding(inputs, allowed: torch.Tensor) -> torch.Tensor:
    """A cost of the caller's that forbids pairs of the single image, (T, Q)."""
    return torch.where(allowed, 0.0, math.inf).expand(len(inputs[0]), -1, -1)


def test_forbidden_pairs_are_not_matched(implementation):
    inputs = arguments(queries=6, counts=(4,))
    allowed = torch.eye(6, dtype=torch.bool)[[5, 3, 0, 1]]
    matched = implementation(
        *inputs, extra_cost=forbidding(inputs, allowed), non_finite_cost=math.inf
    )
    assert (matched == torch.tensor([5, 3, 0, 1])).all()


def best_by_trying_all(cost: torch.Tensor) -> tuple[int, float]:
    """The most pairs that a cost matrix with +inf allows, and the least cost of that many."""
    rows, columns = cost.shape
    choices = {(): 0.0}
    for row in range(rows):
        grown = {}
        for taken, value in choices.items():
            for column in [None, *(c for c in range(columns) if c not in taken)]:
                if column is None:
                    key, total = taken, value
                elif cost[row, column] < math.inf:
                    key, total = tuple(sorted((*taken, column))), value + cost[row, column].item()
                else:
                    continue
                grown[key] = min(grown.get(key, math.inf), total)
        choices = grown
    best = {}
    for taken, value in choices.items():
        best[len(taken)] = min(best.get(len(taken), math.inf), value)
    most = max(best)
    return most, best[most]


@pytest.mark.parametrize("shape", [(4, 6), (5, 5), (6, 4), (1, 3), (3, 1)])
def test_as_many_targets_as_possible_at_the_least_cost(shape, implementation):
    targets, queries = shape
    for density in (0.1, 0.25, 0.5):
        inputs = arguments(sets=4, queries=queries, counts=(targets,), dtype=torch.float64)
        extra = torch.where(torch.rand(4, *shape) < density, 0.0, math.inf).double()
        cost = matching_cost(*inputs, extra_cost=extra)
        matched = implementation(*inputs, extra_cost=extra, non_finite_cost=math.inf)
        for own_cost, own in zip(cost, matched, strict=True):
            rows = (own >= 0).nonzero()[:, 0]
            assert len(set(own[rows].tolist())) == len(rows)
            most, least = best_by_trying_all(own_cost)
            assert len(rows) == most
            assert own_cost[rows, own[rows]].sum().item() == pytest.approx(least, abs=1e-12)


def test_a_target_without_a_query_leaves_the_others_their_optimum(implementation):
    inputs = arguments(sets=1, queries=9, counts=(5,))
    allowed = torch.ones(5, 9, dtype=torch.bool)
    allowed[2] = False
    matched = implementation(
        *inputs, extra_cost=forbidding(inputs, allowed), non_finite_cost=math.inf
    )
    logits, boxes, labels, target_boxes, _ = inputs
    others = [0, 1, 3, 4]
    alone = implementation(
        logits, boxes, labels[others], target_boxes[others], torch.tensor([0, 4])
    )
    assert matched[0, 2] == -1
    assert torch.equal(matched[:, others], alone)


def test_costs_beyond_any_sum_are_forbidden_too(implementation):
    inputs = arguments(queries=4, counts=(2,))
    extra = torch.tensor([[0, 0, 1e30, 0], [1e30, 1e30, 1e30, 1e30]]).expand(2, 2, 4)
    matched = implementation(*inputs, extra_cost=extra, non_finite_cost=math.inf)
    assert (matched[:, 1] == -1).all()
    assert (matched[:, 0] >= 0).all()


def test_a_bad_image_may_stay_unmatched(implementation):
    logits, boxes, labels, target_boxes, offsets = arguments(counts=(5, 8, 7), queries=40)
    inputs = (logits, boxes, labels, target_boxes, offsets)
    expected = implementation(*inputs, groups=2)
    boxes[1, 1, 25, 0] = math.inf
    matched = implementation(*inputs, groups=2, non_finite_cost=math.nan)
    expected[3, 5:13] = -1
    assert torch.equal(matched, expected)


# --- the dispatcher -------------------------------------------------------------------------------


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_opcheck(class_cost):
    inputs, counts, _ = padded(arguments(queries=36))
    options = {"class_cost": class_cost, "groups": 3, "counts": counts}
    options["extra_cost"] = torch.randn(2, 14, 36)
    torch.library.opcheck(torch.ops.detr_fast.set_matching.default, inputs, options)


def test_compiles_without_graph_breaks_or_recompiles():
    torch._dynamo.reset()
    compiled = torch.compile(set_matching, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for queries, counts in ((20, (3, 2)), (30, (5, 4, 7)), (40, (2, 9, 0, 5))):
            inputs = arguments(sets=len(counts), queries=queries, counts=counts)
            assert torch.equal(compiled(*inputs), set_matching(*inputs))


def test_is_not_differentiable():
    logits, boxes, *rest = arguments()
    assert not set_matching(logits.requires_grad_(), boxes, *rest).requires_grad


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_arguments_are_explained():
    logits, boxes, labels, target_boxes, offsets = arguments()
    with pytest.raises(ValueError, match=r"logits has shape \(3, 37, 13\)"):
        set_matching(logits[0], boxes, labels, target_boxes, offsets)
    for number in (-math.inf, 1e39):
        with pytest.raises(ValueError, match=f"non_finite_cost is {number}".replace("+", "[+]")):
            set_matching(logits, boxes, labels, target_boxes, offsets, non_finite_cost=number)
    for groups in (0, -1, 2):
        with pytest.raises(ValueError, match=f"37 queries do not divide into {groups} groups"):
            set_matching(logits, boxes, labels, target_boxes, offsets, groups=groups)


def test_offsets_that_do_not_divide_the_targets(implementation):
    with pytest.raises(ValueError, match="must ascend from 0 to the number of targets, 10"):
        implementation(*arguments()[:4], torch.tensor([0, 3, 3, 11]))


def test_a_label_without_a_class(implementation):
    logits, boxes, labels, target_boxes, offsets = arguments()
    labels[2] = 13
    with pytest.raises(IndexError, match=r"labels\[2\] is 13, but the logits have 13 classes"):
        implementation(logits, boxes, labels, target_boxes, offsets)

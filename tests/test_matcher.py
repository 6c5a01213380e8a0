"""The Hungarian matcher: SciPy's answers under the original's signature."""

import re
import warnings

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import detr_fast
from detr_fast._extension import available, build_info
from detr_fast.training import matcher as matcher_module
from detr_fast.training.counted_warnings import CountedWarning
from detr_fast.training.matcher import HungarianMatcher
from detr_fast.training.targets import pack_targets

CLASSES = 7


def random_case(sizes, num_queries=12, dtype=torch.float64):
    outputs = {
        "pred_logits": torch.randn(len(sizes), num_queries, CLASSES + 1, dtype=torch.float64).to(
            dtype
        ),
        "pred_boxes": (torch.rand(len(sizes), num_queries, 4, dtype=torch.float64) * 0.5 + 0.2).to(
            dtype
        ),
    }
    targets = [
        {
            "labels": torch.randint(CLASSES, (size,)),
            "boxes": torch.rand(size, 4, dtype=torch.float64) * 0.5 + 0.2,
        }
        for size in sizes
    ]
    return outputs, targets


def scalar_giou(a, b):
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    inter = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def costs(logits, boxes, target, weights):
    """The cost matrix (Q, M) of one image, written out pair by pair."""
    probability = logits.double().softmax(-1)
    own, wanted = boxes.double().tolist(), target["boxes"].double().tolist()
    return torch.tensor(
        [
            [
                -weights[0] * probability[q, label].item()
                + weights[1] * sum(abs(a - b) for a, b in zip(own[q], wanted[t], strict=True))
                - weights[2] * scalar_giou(own[q], wanted[t])
                for t, label in enumerate(target["labels"])
            ]
            for q in range(len(own))
        ]
    ).reshape(len(own), len(wanted))


@pytest.mark.parametrize("weights", [(1, 5, 2), (1, 1, 1), (0, 5, 0), (1, 0, 0), (0, 0, 2)])
@pytest.mark.parametrize("sizes", [(3, 0, 12, 1), (0, 0), (1,)])
def test_scipy_on_the_costs_written_out(weights, sizes):
    outputs, targets = random_case(sizes)
    answer = HungarianMatcher(*weights)(outputs, targets)
    assert len(answer) == len(sizes)
    for image, (i, j) in enumerate(answer):
        cost = costs(
            outputs["pred_logits"][image], outputs["pred_boxes"][image], targets[image], weights
        )
        rows, columns = linear_sum_assignment(cost)
        assert i.dtype == j.dtype == torch.int64
        assert i.device.type == j.device.type == "cpu"
        assert i.tolist() == sorted(i.tolist())
        assert len(i) == len(j) == len(rows)
        assert cost[i, j].sum().item() == pytest.approx(cost[rows, columns].sum().item(), abs=1e-12)
        # By class alone, targets of one class cost the same: several assignments are optimal.
        if weights[1:] != (0, 0):
            assert i.tolist() == rows.tolist()
            assert j.tolist() == columns.tolist()


def test_more_targets_than_queries_matches_as_many_as_scipy_and_says_so(monkeypatch):
    monkeypatch.setattr(matcher_module, "overfull_images", CountedWarning())
    outputs, targets = random_case((9, 2, 5), num_queries=4)
    with pytest.warns(UserWarning, match=r"an image has 9 targets but the model has 4 queries"):
        answer = HungarianMatcher(1, 5, 2)(outputs, targets)
    assert matcher_module.overfull_images.count == 2
    for image, (i, j) in enumerate(answer):
        cost = costs(
            outputs["pred_logits"][image], outputs["pred_boxes"][image], targets[image], (1, 5, 2)
        )
        rows, columns = linear_sum_assignment(cost)
        assert i.tolist() == rows.tolist()
        assert j.tolist() == columns.tolist()


def test_all_layers_at_once_are_the_layers_one_by_one():
    sizes = (3, 0, 7)
    layers = [random_case(sizes)[0] for _ in range(4)]
    _, targets = random_case(sizes)
    matcher = HungarianMatcher(1, 5, 2)
    matched = matcher.match_layers(
        torch.stack([layer["pred_logits"] for layer in layers]),
        torch.stack([layer["pred_boxes"] for layer in layers]),
        pack_targets(targets),
    )
    assert matched.shape == (4, 10)
    assert matched.dtype == torch.int64
    for layer, outputs in enumerate(layers):
        for image, (i, j) in enumerate(matcher(outputs, targets)):
            own = matched[layer][pack_targets(targets).image_index == image]
            assert own[j].tolist() == i.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_on_a_cpu_are_computed_in_float32(dtype):
    outputs, targets = random_case((3, 5), dtype=dtype)
    single = {name: value.float() for name, value in outputs.items()}
    matcher = HungarianMatcher(1, 5, 2)
    for half, full in zip(matcher(outputs, targets), matcher(single, targets), strict=True):
        assert half[0].tolist() == full[0].tolist()
        assert half[1].tolist() == full[1].tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_a_broken_prediction_leaves_other_images_alone(name, value):
    outputs, targets = random_case((3, 5, 2))
    matcher = HungarianMatcher(1, 5, 2)
    sound = matcher(outputs, targets)
    outputs[name][1, 2] = value
    broken = matcher(outputs, targets)
    for image in (0, 2):
        assert torch.equal(sound[image][0], broken[image][0])
        assert torch.equal(sound[image][1], broken[image][1])
    assert len(broken[1][0]) == 5
    assert sorted(broken[1][1].tolist()) == [0, 1, 2, 3, 4]


def test_indices_may_stay_with_the_predictions():
    outputs, targets = random_case((3, 5))
    there = HungarianMatcher(1, 5, 2, index_device=None)(outputs, targets)
    here = HungarianMatcher(1, 5, 2)(outputs, targets)
    for (i, j), (k, m) in zip(there, here, strict=True):
        assert i.device == outputs["pred_logits"].device
        assert torch.equal(i, k)
        assert torch.equal(j, m)


# --- options --------------------------------------------------------------------------------------


def test_focal_class_cost_has_no_slot_for_no_object():
    outputs, targets = random_case((4,))
    targets[0]["labels"][1] = CLASSES
    with pytest.raises(ValueError, match="no-object slot"):
        HungarianMatcher()(outputs, targets)
    ((i, j),) = HungarianMatcher(2, 5, 2, class_cost="focal", alpha=0.4)(outputs, targets)
    p = outputs["pred_logits"][0].sigmoid()[:, targets[0]["labels"]]
    focal = 0.4 * (1 - p) ** 2 * -p.log() - 0.6 * p**2 * -(1 - p).log()
    cost = 2 * focal + costs(torch.zeros(12, 9), outputs["pred_boxes"][0], targets[0], (0, 5, 2))
    rows, columns = linear_sum_assignment(cost)
    assert i.tolist() == rows.tolist()
    assert j.tolist() == columns.tolist()


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:an image has")
def test_groups_are_matched_apart_and_listed_together(groups):
    outputs, targets = random_case((3, 0, 8))
    matcher = HungarianMatcher(1, 5, 2)
    together = matcher(outputs, targets, groups)
    size = 12 // groups
    for image, (i, j) in enumerate(together):
        expected = []
        for g in range(groups):
            own = {name: value[:, g * size : (g + 1) * size] for name, value in outputs.items()}
            queries, chosen = matcher(own, targets)[image]
            expected += zip((queries + g * size).tolist(), chosen.tolist(), strict=True)
        assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected


def test_all_layers_and_groups_at_once():
    sizes = (3, 0, 5)
    layers = [random_case(sizes)[0] for _ in range(2)]
    _, targets = random_case(sizes)
    matcher, packed = HungarianMatcher(1, 5, 2), pack_targets(targets)
    stacked = (torch.stack([layer[name] for layer in layers]) for name in layers[0])
    matched = matcher.match_layers(*stacked, packed, groups=2)
    assert matched.shape == (4, 8)
    for layer, outputs in enumerate(layers):
        own = matcher_module.index_lists(matched[2 * layer : 2 * layer + 2], packed, 12)
        for (i, j), (k, m) in zip(matcher(outputs, targets, groups=2), own, strict=True):
            assert torch.equal(i, k)
            assert torch.equal(j, m)


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_a_broken_prediction_is_an_error_if_so_asked(name):
    outputs, targets = random_case((3, 0, 2))
    matcher = HungarianMatcher(1, 5, 2, non_finite="raise")
    for (i, j), (k, m) in zip(
        matcher(outputs, targets), HungarianMatcher(1, 5, 2)(outputs, targets), strict=True
    ):
        assert torch.equal(i, k)
        assert torch.equal(j, m)
    targets[2]["image_id"] = torch.tensor([17])
    outputs[name][2, 5] = float("nan")
    with pytest.raises(ValueError, match="predictions of layer 0 for image 17 give costs that are"):
        matcher(outputs, targets)
    with pytest.raises(ValueError, match="predictions of layer 0, group 1 for image 17"):
        matcher(outputs, targets, groups=3)
    sound = random_case((3, 0, 2))[0]
    stacked = (torch.stack([sound[key], outputs[key]]) for key in ("pred_logits", "pred_boxes"))
    with pytest.raises(ValueError, match="predictions of layer 1 for image 17"):
        matcher.match_layers(*stacked, pack_targets(targets))


def test_a_number_may_stand_for_costs_that_are_not_finite():
    outputs, targets = random_case((2,))
    outputs["pred_boxes"][0, 7] = float("nan")
    ((i, _),) = HungarianMatcher(1, 5, 2, non_finite=-1e6)(outputs, targets)
    assert 7 in i.tolist()
    ((i, _),) = HungarianMatcher(1, 5, 2, non_finite="last")(outputs, targets)
    assert 7 not in i.tolist()


def test_pairs_that_are_forbidden_leave_targets_without_a_query():
    outputs, targets = random_case((5, 3))
    outputs["pred_boxes"][0, 2:] = float("nan")
    (i, j), (k, m) = HungarianMatcher(1, 5, 2, non_finite=float("inf"))(outputs, targets)
    assert i.tolist() == [0, 1]
    assert len(j) == 2
    assert len(k) == len(m) == 3


def test_padded_targets_have_the_same_matches():
    outputs, targets = random_case((3, 0, 5))
    matcher = HungarianMatcher(1, 5, 2)
    packed = pack_targets(targets)
    for (i, j), (k, m) in zip(
        matcher(outputs, packed), matcher(outputs, packed.padded(6)), strict=True
    ):
        assert torch.equal(i, k)
        assert torch.equal(j, m)


def test_it_says_what_ran():
    matcher = HungarianMatcher(1, 5, 2)
    assert matcher.implementation is None
    matcher(*random_case((2,)))
    kernel = rf"CPU kernel \({build_info()['cpu_capability']}\)" if available() else "reference"
    assert re.fullmatch(kernel, matcher.implementation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_cost": "sigmoid"}, "class_cost is 'sigmoid': use one of softmax, focal"),
        ({"non_finite": "first"}, "non_finite is 'first': use 'last', 'raise' or a number"),
        ({"non_finite": None}, "non_finite is None"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HungarianMatcher(**options)


def test_no_gradient_is_recorded():
    outputs, targets = random_case((2,))
    outputs = {name: value.requires_grad_() for name, value in outputs.items()}
    ((i, j),) = HungarianMatcher()(outputs, targets)
    assert not i.requires_grad
    assert not j.requires_grad


def test_all_weights_zero_is_refused():
    with pytest.raises(ValueError, match="cost_class, cost_bbox and cost_giou are all 0"):
        HungarianMatcher(0, 0, 0)


def test_fewer_targets_than_images_is_refused():
    outputs, targets = random_case((2, 2))
    with pytest.raises(ValueError, match="targets for 1 images but predictions for 2"):
        HungarianMatcher()(outputs, targets[:1])


@pytest.mark.parametrize("missing", ["pred_logits", "pred_boxes"])
def test_missing_output_is_named(missing):
    outputs, targets = random_case((2,))
    del outputs[missing]
    with pytest.raises(ValueError, match=f"no '{missing}'"):
        HungarianMatcher()(outputs, targets)


def test_public_name():
    assert detr_fast.HungarianMatcher is HungarianMatcher


def test_enough_queries_give_no_warning():
    outputs, targets = random_case((12,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HungarianMatcher()(outputs, targets)

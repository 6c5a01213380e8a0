"""matching_cost: the terms against independent formulas, and the layout of the result."""

import math

import pytest
import torch
import torchvision
from tolerances import (
    FOCAL_TERM_FLOAT32,
    MATCHING_COST_FLOAT32,
    MATCHING_COST_FLOAT64,
    MATCHING_COST_HALF,
    SOFTMAX_TERM_FLOAT32,
)
from torch import Tensor

from detr_fast.ops.matching_cost import matching_cost
from detr_fast.reference import matching_cost as reference
from detr_fast.reference.boxes import cxcywh_to_xyxy, generalized_iou

IMPLEMENTATIONS = {"operation": matching_cost, "reference": reference.matching_cost}
WEIGHTS = {"weight_class": 2.0, "weight_bbox": 5.0, "weight_giou": 3.0}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def boxes_like(*shape: int, dtype=torch.float32) -> Tensor:
    return torch.cat(
        [torch.rand(*shape, 2, dtype=dtype), torch.rand(*shape, 2, dtype=dtype) * 0.5 + 0.01], -1
    )


def arguments(sets=2, queries=37, classes=13, counts=(3, 0, 7), dtype=torch.float32) -> tuple:
    """Random predictions and targets, `counts` of them for each image."""
    return (
        torch.randn(sets, len(counts), queries, classes, dtype=dtype) * 3,
        boxes_like(sets, len(counts), queries, dtype=dtype),
        torch.randint(0, classes, (sum(counts),)),
        boxes_like(sum(counts), dtype=dtype),
        torch.tensor([0, *counts]).cumsum(0),
    )


def expected_cost(logits, boxes, labels, target_boxes, offsets, class_cost="softmax", **options):
    """Pair by pair, in float64, with torchvision's generalised IoU."""
    sets, images, queries, _ = logits.shape
    weights = {name: options.get(name, 1.0) for name in WEIGHTS}
    alpha, gamma, eps = (options.get(n, d) for n, d in zip(_FOCAL, (0.25, 2.0, 1e-8), strict=True))
    cost = torch.empty(sets, len(labels), queries, dtype=torch.float64)
    logits, boxes, target_boxes = logits.double(), boxes.double(), target_boxes.double()
    for b in range(images):
        for t in range(offsets[b], offsets[b + 1]):
            chosen = logits[:, b, :, labels[t]]
            if class_cost == "softmax":
                largest = logits[:, b].amax(-1)
                partition = (logits[:, b] - largest[..., None]).exp().sum(-1)
                term = -(chosen - largest).exp() / partition
            else:
                p, not_p = chosen.sigmoid(), (-chosen).sigmoid()
                term = alpha * not_p**gamma * minus_log(chosen, eps)
                term -= (1 - alpha) * p**gamma * minus_log(-chosen, eps)
            corners = torchvision.ops.box_convert(boxes[:, b], "cxcywh", "xyxy")
            target = torchvision.ops.box_convert(target_boxes[t : t + 1], "cxcywh", "xyxy")
            giou = torch.stack(
                [torchvision.ops.generalized_box_iou(c, target)[:, 0] for c in corners]
            )
            l1 = (boxes[:, b] - target_boxes[t]).abs().sum(-1)
            cost[:, t] = (
                weights["weight_class"] * term
                + weights["weight_bbox"] * l1
                - weights["weight_giou"] * giou
            )
    return cost


_FOCAL = ("alpha", "gamma", "eps")


def minus_log(logit, eps):
    """-log(sigmoid(logit) + eps), in float64 also where the sigmoid is 0 in float32."""
    if eps:
        return -(logit.sigmoid() + eps).log()
    return torch.where(logit > -500, (-logit).clamp(max=500).exp().log1p(), -logit)


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, MATCHING_COST_FLOAT32), (torch.float64, MATCHING_COST_FLOAT64)],
    ids=str,
)
@pytest.mark.parametrize("queries", [1, 8, 37, 300])
def test_equals_the_formula(queries, dtype, tolerance, class_cost, implementation):
    inputs = arguments(queries=queries, dtype=dtype)
    cost = implementation(*inputs, class_cost=class_cost, **WEIGHTS)
    assert cost.dtype == dtype
    expected = expected_cost(*inputs, class_cost=class_cost, **WEIGHTS)
    torch.testing.assert_close(cost.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [0.1, 3, 30, 1000])
@pytest.mark.parametrize(
    ("class_cost", "eps", "tolerance"),
    [("softmax", 0, SOFTMAX_TERM_FLOAT32), ("focal", 0, FOCAL_TERM_FLOAT32)],
)
def test_the_class_term_is_as_exact_as_float32(class_cost, eps, tolerance, scale, implementation):
    inputs = arguments(sets=1, queries=300, classes=92, counts=(40, 40))
    inputs = (inputs[0] * scale, *inputs[1:])
    options = {"class_cost": class_cost, "eps": eps, "weight_bbox": 0.0, "weight_giou": 0.0}
    cost = implementation(*inputs, **options)
    expected = expected_cost(*inputs, **options)
    torch.testing.assert_close(cost.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("classes", [1, 2, 16, 91, 92, 366])
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_any_number_of_classes(class_cost, classes, implementation):
    inputs = arguments(classes=classes)
    cost = implementation(*inputs, class_cost=class_cost)
    expected = expected_cost(*inputs, class_cost=class_cost)
    torch.testing.assert_close(cost.double(), expected, rtol=0, atol=MATCHING_COST_FLOAT32)


@pytest.mark.parametrize(
    ("alpha", "gamma", "eps"),
    [(0.25, 2, 1e-12), (0.5, 1.5, 1e-8), (1, 0, 0), (0.25, 2, 0), (0.6, 1, 0), (0.3, 4, 0.1)],
)
def test_focal_parameters(alpha, gamma, eps, implementation):
    inputs = arguments()
    options = {"class_cost": "focal", "alpha": alpha, "gamma": gamma, "eps": eps}
    torch.testing.assert_close(
        implementation(*inputs, **options).double(),
        expected_cost(*inputs, **options),
        rtol=0,
        atol=MATCHING_COST_FLOAT32,
    )


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_saturated_logits_stay_finite(class_cost, implementation):
    logits, *rest = arguments()
    logits = logits.sign() * torch.tensor([1e4, 80.0, 3e38]).repeat(5)[:13]
    cost = implementation(logits, *rest, class_cost=class_cost)
    assert cost.isfinite().all()
    if class_cost == "softmax":
        expected = expected_cost(logits, *rest)
        torch.testing.assert_close(cost.double(), expected, rtol=0, atol=MATCHING_COST_FLOAT32)


def line_of_logits(dtype=torch.float32):
    """Arguments whose boxes agree, with logits from -2000 to 2000."""
    logits = torch.cat([torch.linspace(-20, 20, 4001), torch.linspace(-2000, 2000, 4001)])
    logits = logits.to(dtype).reshape(1, 1, -1, 1)
    boxes = torch.ones(1, 1, logits.shape[2], 4, dtype=dtype)
    target = torch.zeros(1, dtype=torch.int64), torch.ones(1, 4, dtype=dtype)
    return logits, boxes, *target, torch.tensor([0, 1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("gamma", [0, 1, 2, 2.5])
def test_the_focal_cost_without_eps_is_precise_for_every_logit(
    gamma, dtype, tolerance, implementation
):
    inputs = line_of_logits(dtype)
    options = {"class_cost": "focal", "gamma": gamma, "eps": 0.0, "weight_giou": 0.0}
    cost = implementation(*inputs, **options).double()
    torch.testing.assert_close(
        cost, expected_cost(*inputs, **options), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_float32(dtype, implementation):
    logits, boxes, labels, target_boxes, offsets = arguments()
    inputs = (logits.to(dtype), boxes.to(dtype), labels, target_boxes, offsets)
    cost = implementation(*inputs, **WEIGHTS)
    assert cost.dtype == torch.float32
    expected = expected_cost(*inputs, **WEIGHTS)
    torch.testing.assert_close(cost.double(), expected, rtol=0, atol=MATCHING_COST_HALF)


def test_operation_equals_its_reference():
    inputs = arguments(sets=6, queries=100, classes=92, counts=(0, 1, 7, 30, 130))
    torch.testing.assert_close(
        matching_cost(*inputs, **WEIGHTS),
        reference.matching_cost(*inputs, **WEIGHTS),
        rtol=0,
        atol=MATCHING_COST_FLOAT32,
    )


@pytest.mark.parametrize("counts", [(0, 0), (), (4,)])
def test_images_without_targets(counts, implementation):
    cost = implementation(*arguments(counts=counts))
    assert cost.shape == (2, sum(counts), 37)


@pytest.mark.parametrize("queries", [0, 5])
def test_no_queries_or_no_sets(queries, implementation):
    assert implementation(*arguments(queries=queries)).shape == (2, 10, queries)
    assert implementation(*arguments(sets=0, queries=queries)).shape == (0, 10, queries)


def test_strides_do_not_change_the_cost(implementation):
    logits, boxes, labels, target_boxes, offsets = arguments()
    expected = implementation(logits, boxes, labels, target_boxes, offsets)
    strided = (
        logits.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        boxes.flip(-1).contiguous().flip(-1).transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([labels, labels], 1)[:, 0],
        target_boxes.t().contiguous().t(),
        offsets,
    )
    assert torch.equal(implementation(*strided), expected)


# --- a cost of the caller's, and room for more targets --------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_cost_of_the_callers_is_added(dtype, implementation):
    inputs = arguments()
    extra = torch.randn(2, 37, 10, dtype=dtype).transpose(1, 2)
    extra[0, 1, 2] = math.inf
    cost = implementation(*inputs, extra_cost=extra)
    assert torch.equal(cost, implementation(*inputs) + extra.float())


def test_a_cost_of_the_callers_in_float64(implementation):
    inputs = arguments(dtype=torch.float64)
    extra = torch.randn(2, 10, 37, dtype=torch.float64)
    cost = implementation(*inputs, extra_cost=extra)
    assert torch.equal(cost, implementation(*inputs) + extra)


def padded(inputs, room=(5, 0, 9)):
    """The same targets with room behind those of each image, filled with what must not be read."""
    logits, boxes, labels, target_boxes, offsets = inputs
    counts = offsets.diff()
    wide = torch.tensor([0, *room]).cumsum(0)
    index = torch.cat([torch.arange(n) + start for n, start in zip(counts, wide, strict=False)])
    many_labels = torch.full((sum(room),), 10**9)
    many_boxes = torch.full((sum(room), 4), math.nan, dtype=target_boxes.dtype)
    many_labels[index], many_boxes[index] = labels, target_boxes
    return (logits, boxes, many_labels, many_boxes, wide), counts, index


def test_room_for_targets_is_not_read(implementation):
    inputs = arguments()
    wide, counts, index = padded(inputs)
    extra = torch.full((2, 14, 37), math.nan)
    extra[:, index] = torch.randn(2, 10, 37)
    cost = implementation(*wide, counts=counts, extra_cost=extra)
    assert torch.equal(cost[:, index], implementation(*inputs, extra_cost=extra[:, index]))
    cost[:, index] = 0
    assert (cost == 0).all()


@pytest.mark.parametrize("counts", [[6, 0, 7], [3, 0, -1], [3, 1, 7]])
def test_counts_beyond_the_room(counts, implementation):
    wide, _, _ = padded(arguments())
    with pytest.raises(ValueError, match=r"counts\[\d\] is -?\d, but offsets leave image \d room"):
        implementation(*wide, counts=torch.tensor(counts))


# --- boxes ----------------------------------------------------------------------------------------


def test_generalized_iou_equals_torchvisions():
    a, b = cxcywh_to_xyxy(boxes_like(40)), cxcywh_to_xyxy(boxes_like(50))
    torch.testing.assert_close(
        generalized_iou(a[:, None], b), torchvision.ops.generalized_box_iou(a, b)
    )


def test_generalized_iou_of_every_finite_box_is_defined():
    sides = [0.0, 1e-45, 1e-20, 0.5, 1e19, 1e30, 3e38]
    boxes = torch.tensor([[x, x, x + w, x + h] for x in (0.0, 0.3) for w in sides for h in sides])
    boxes = torch.cat([boxes, boxes[:, [2, 3, 0, 1]], -boxes])
    value = generalized_iou(boxes[:, None], boxes)
    assert value.isfinite().all()
    assert value.abs().max() <= 1 + 1e-6


def test_the_gradient_of_generalized_iou_is_finite_for_empty_boxes():
    sides = [0.0, 1e-10, 0.5, 1e9]
    boxes = torch.tensor([[x, x, x + w, x + h] for x in (0.0, 0.3) for w in sides for h in sides])
    boxes = torch.cat([boxes, boxes[:, [2, 3, 0, 1]]]).requires_grad_()
    generalized_iou(boxes[:, None], boxes.detach()).sum().backward()
    assert boxes.grad.isfinite().all()


def test_generalized_iou_by_hand():
    empty = torch.tensor([1.0, 1.0, 1.0, 1.0])
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0])
    beside = torch.tensor([2.0, 0.0, 3.0, 1.0])
    assert generalized_iou(empty, empty) == 0
    assert generalized_iou(unit, unit) == 1
    assert generalized_iou(unit, empty) == 0
    assert generalized_iou(unit, beside) == pytest.approx(-1 / 3)


def test_zero_area_targets_have_a_finite_cost(implementation):
    logits, boxes, labels, target_boxes, offsets = arguments()
    target_boxes[::2, 2:] = 0
    boxes[:, :, ::3, 2:] = 0
    boxes[0, 0, 0] = target_boxes[0]
    assert implementation(logits, boxes, labels, target_boxes, offsets).isfinite().all()


# --- the dispatcher -------------------------------------------------------------------------------


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_opcheck(class_cost):
    torch.library.opcheck(
        torch.ops.detr_fast.matching_cost.default, arguments(), {"class_cost": class_cost}
    )


def test_compiles_without_graph_breaks_or_recompiles():
    torch._dynamo.reset()
    compiled = torch.compile(matching_cost, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for queries, counts in ((20, (3, 2)), (30, (5, 4, 7)), (40, (2, 9, 0, 5))):
            inputs = arguments(sets=len(counts), queries=queries, counts=counts)
            assert torch.equal(compiled(*inputs), matching_cost(*inputs))


def test_is_not_differentiable():
    logits, boxes, *rest = arguments()
    assert not matching_cost(logits.requires_grad_(), boxes.requires_grad_(), *rest).requires_grad


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(3, 37, 13)}, ValueError, r"logits has shape \(3, 37, 13\)"),
        ({"logits": torch.zeros(2, 3, 37, 0)}, ValueError, "at least one class"),
        ({"logits": torch.zeros(2, 3, 37, 13).long()}, TypeError, "logits has dtype torch.int64"),
        ({"boxes": torch.zeros(2, 3, 36, 4)}, ValueError, r"need \(2, 3, 37, 4\)"),
        ({"boxes": torch.zeros(2, 3, 37, 5)}, ValueError, r"need \(2, 3, 37, 4\)"),
        ({"labels": torch.zeros(10).int()}, TypeError, "labels has dtype torch.int32"),
        ({"labels": torch.zeros(10, 1).long()}, ValueError, r"labels has shape \(10, 1\)"),
        ({"target_boxes": torch.zeros(9, 4)}, ValueError, r"10 labels need \(10, 4\)"),
        ({"target_boxes": torch.zeros(10, 5)}, ValueError, r"\(10, 5\): use \(T, 4\)"),
        ({"offsets": torch.zeros(4)}, ValueError, "offsets is torch.float32 on cpu"),
        ({"offsets": torch.zeros(3).long()}, ValueError, r"3 images need \(4,\)"),
        ({"class_cost": "sigmoid"}, ValueError, "'sigmoid': use one of softmax, focal"),
        ({"gamma": -0.5}, ValueError, "gamma is -0.5 and eps 1e-08: use numbers that are not neg"),
        ({"eps": math.nan}, ValueError, "eps nan"),
        ({"counts": torch.zeros(3)}, ValueError, r"counts is torch.float32 of shape \(3,\)"),
        ({"counts": torch.zeros(2).long()}, ValueError, r"use int64 \(3,\)"),
        ({"extra_cost": torch.zeros(2, 37, 10)}, ValueError, r"use \(2, 10, 37\) on cpu"),
        ({"extra_cost": torch.zeros(2, 10, 37).long()}, TypeError, "extra_cost has dtype"),
    ],
)
def test_wrong_arguments_are_explained(changes, error, message):
    names = ("logits", "boxes", "labels", "target_boxes", "offsets")
    with pytest.raises(error, match=message):
        matching_cost(**(dict(zip(names, arguments(), strict=True)) | changes))


@pytest.mark.parametrize("offsets", [[1, 3, 3, 10], [0, 3, 2, 10], [0, 3, 3, 9], [0, -1, 3, 10]])
def test_offsets_that_do_not_divide_the_targets(offsets, implementation):
    with pytest.raises(ValueError, match="must ascend from 0 to the number of targets, 10"):
        implementation(*arguments()[:4], torch.tensor(offsets))


@pytest.mark.parametrize("label", [-1, 13, 10**12])
def test_a_label_without_a_class(label, implementation):
    logits, boxes, labels, target_boxes, offsets = arguments()
    labels[4] = label
    with pytest.raises(
        IndexError, match=rf"labels\[4\] is {label}, but the logits have 13 classes"
    ):
        implementation(logits, boxes, labels, target_boxes, offsets)


def test_a_bad_prediction_stays_in_its_query(implementation):
    inputs = arguments()
    clean = implementation(*inputs)
    inputs[1][1, 2, 5, 0] = math.nan
    inputs[0][0, 0, 7, 3] = math.inf
    cost = implementation(*inputs)
    changed = cost != clean
    assert changed[1, 3:, 5].all()
    assert changed[0, :3, 7].all()
    assert changed.sum() == 7 + 3

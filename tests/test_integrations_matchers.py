"""Drop-in matchers against the projects' own formulas, written out here with SciPy."""

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from detr_fast.integrations.matchers import (
    DeformableDetrMatcher,
    GroupDetrMatcher,
    RTDetrMatcher,
    TransformersMatcher,
)

CLASSES = 9


def case(sizes=(3, 0, 12, 1), queries=12, dtype=torch.float64):
    outputs = {
        "pred_logits": torch.randn(len(sizes), queries, CLASSES, dtype=dtype) * 3,
        "pred_boxes": torch.rand(len(sizes), queries, 4, dtype=dtype) * 0.5 + 0.2,
    }
    targets = [
        {
            "labels": torch.randint(CLASSES - 1, (size,)),
            "boxes": torch.rand(size, 4, dtype=dtype) * 0.5 + 0.2,
        }
        for size in sizes
    ]
    return outputs, targets


def focal(logits, labels, alpha=0.25, gamma=2.0):
    """Deformable DETR, DINO, Group DETR, LW-DETR, RT-DETR."""
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    return positive[:, labels] - negative[:, labels]


def focal_of_log_sigmoids(logits, labels, alpha=0.25, gamma=2.0):
    """RF-DETR."""
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -F.logsigmoid(-logits)
    positive = alpha * (1 - p) ** gamma * -F.logsigmoid(logits)
    return positive[:, labels] - negative[:, labels]


def softmax(logits, labels):
    """DETR, transformers, and RT-DETR without focal loss."""
    return -logits.softmax(-1)[:, labels]


def expected(outputs, targets, class_cost, weights, groups=1):
    """SciPy's answer for each image: the groups one after another, as the projects join them."""
    lists = []
    for logits, boxes, target in zip(*outputs.values(), targets, strict=True):
        wanted = target["boxes"]
        giou = generalized_box_iou(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        cost = (
            weights[1] * torch.cdist(boxes, wanted, p=1)
            + weights[0] * class_cost(logits, target["labels"])
            - weights[2] * giou
        )
        i, j, size = [], [], len(boxes) // groups
        for group, own in enumerate(cost.split(size)):
            rows, columns = linear_sum_assignment(own)
            i += (rows + group * size).tolist()
            j += columns.tolist()
        lists.append((i, j))
    return lists


def lists_of(indices):
    for i, j in indices:
        assert i.dtype == j.dtype == torch.int64
        assert i.device.type == j.device.type == "cpu"
    return [(i.tolist(), j.tolist()) for i, j in indices]


SIZES = [(3, 0, 12, 1), (0, 0), (15, 2)]


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("alpha", [0.25, 0.4])
def test_deformable_detr(alpha, sizes):
    outputs, targets = case(sizes)
    matcher = DeformableDetrMatcher(cost_class=2, cost_bbox=5, cost_giou=2, focal_alpha=alpha)
    own = expected(outputs, targets, lambda x, y: focal(x, y, alpha), (2, 5, 2))
    assert lists_of(matcher(outputs, targets)) == own


def test_deformable_detr_as_it_matches_proposals():
    outputs, targets = case((4, 7), queries=900)
    outputs["pred_logits"] = outputs["pred_logits"][..., :1].contiguous()
    targets = [target | {"labels": torch.zeros_like(target["labels"])} for target in targets]
    own = expected(outputs, targets, focal, (2, 5, 2))
    assert lists_of(DeformableDetrMatcher(2, 5, 2)(outputs, targets)) == own


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("eps", "class_cost"), [(1e-8, focal), (0, focal_of_log_sigmoids)])
def test_group_detr(eps, class_cost, groups, sizes):
    outputs, targets = case(sizes)
    matcher = GroupDetrMatcher(cost_class=2, cost_bbox=5, cost_giou=2, eps=eps)
    own = expected(outputs, targets, class_cost, (2, 5, 2), groups)
    assert lists_of(matcher(outputs, targets, group_detr=groups)) == own
    if groups == 1:
        assert lists_of(matcher(outputs, targets)) == own


def test_group_detr_with_queries_that_do_not_divide():
    with pytest.raises(ValueError, match="12 queries do not divide into 5 groups"):
        GroupDetrMatcher(2, 5, 2)(*case(), group_detr=5)


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("use_focal_loss", [False, True])
def test_rt_detr(use_focal_loss, sizes):
    outputs, targets = case(sizes)
    for target in targets:
        target["labels"][:1] = CLASSES - 1  # no logit is that of no-object
    weights = {"cost_class": 2, "cost_bbox": 5, "cost_giou": 3}
    matcher = RTDetrMatcher(weights, use_focal_loss, alpha=0.3, gamma=1.5)
    class_cost = (lambda x, y: focal(x, y, 0.3, 1.5)) if use_focal_loss else softmax
    own = expected(outputs, targets, class_cost, (2, 5, 3))
    assert lists_of(matcher(outputs, targets)) == own
    as_dict = RTDetrMatcher(weights, use_focal_loss, alpha=0.3, gamma=1.5, as_dict=True)
    assert lists_of(as_dict(outputs, targets)["indices"]) == own


def test_rt_detr_needs_its_weights():
    with pytest.raises(ValueError, match=r"has \['class'\]: use cost_class, cost_bbox, cost_giou"):
        RTDetrMatcher({"class": 1})


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("kind", "class_cost"), [("softmax", softmax), ("focal", focal)])
def test_transformers(kind, class_cost, sizes):
    outputs, targets = case(sizes)
    own = expected(outputs, targets, class_cost, (1, 5, 2))
    renamed = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    matcher = TransformersMatcher(class_cost=1, bbox_cost=5, giou_cost=2, kind=kind)
    assert lists_of(matcher(renamed, labels)) == own


MATCHERS = {
    "Deformable DETR": lambda **options: DeformableDetrMatcher(2, 5, 2, **options),
    "Group DETR": lambda **options: GroupDetrMatcher(2, 5, 2, **options),
    "RT-DETR": lambda **options: RTDetrMatcher(
        {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}, True, **options
    ),
}


@pytest.mark.parametrize("name", MATCHERS)
def test_ties_give_each_target_a_query_of_its_own_at_the_least_cost(name):
    outputs, targets = case((6,), queries=9)
    for value in outputs.values():
        value[:, 3:] = value[:, :1]
    for value in targets[0].values():
        value[3:] = value[:1]
    ((i, j),) = MATCHERS[name]()(outputs, targets)
    ((k, m),) = expected(outputs, targets, focal, (2, 5, 2))
    assert i.tolist() == sorted(set(i.tolist()))
    assert sorted(j.tolist()) == list(range(6))
    # Equal queries and equal targets may be exchanged: what is matched is the same.
    kind_of_query, kind_of_target = [0, 1, 2] + [0] * 6, [0, 1, 2] + [0] * 3
    ours = sorted((kind_of_query[a], kind_of_target[b]) for a, b in zip(i, j, strict=True))
    theirs = sorted((kind_of_query[a], kind_of_target[b]) for a, b in zip(k, m, strict=True))
    assert ours == theirs


@pytest.mark.parametrize("name", MATCHERS)
def test_predictions_that_are_not_finite(name):
    outputs, targets = case((3, 4))
    sound = lists_of(MATCHERS[name]()(outputs, targets))
    outputs["pred_boxes"][1, 2] = float("nan")
    broken = lists_of(MATCHERS[name]()(outputs, targets))
    assert broken[0] == sound[0]
    assert len(broken[1][0]) == 4
    assert 2 not in broken[1][0]
    with pytest.raises(ValueError, match="image 1 of the batch give costs that are not finite"):
        MATCHERS[name](non_finite="raise")(outputs, targets)

"""image_matching: the three operations in one call, and nothing where anything is unusual."""

import math

import pytest
import torch

from detr_fast.ops.image_matching import image_matching
from detr_fast.ops.set_matching import set_matching
from detr_fast.ops.sorted_matches import sorted_matches
from detr_fast.ops.target_packing import target_packing
from detr_fast.reference import image_matching as reference

CLASSES = 5
DEFAULTS = ("softmax", 1.0, 1.0, 1.0, 0.25, 2.0, 1e-8, 1, 1e8)


def of_reference(*arguments):
    given = arguments[5:]
    return reference.image_matching(*arguments[:5], *given, *DEFAULTS[len(given) :])


IMPLEMENTATIONS = {"operation": image_matching, "reference": of_reference}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def arguments(counts=(3, 0, 6), queries=12, dtype=torch.float32):
    return (
        torch.randn(len(counts), queries, CLASSES + 1, dtype=dtype),
        torch.rand(len(counts), queries, 4, dtype=dtype) * 0.5 + 0.2,
        [torch.randint(CLASSES, (count,)) for count in counts],
        [torch.rand(count, 4) * 0.5 + 0.2 for count in counts],
        CLASSES,
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_is_the_three_operations(dtype, class_cost, groups, implementation):
    inputs = arguments(dtype=dtype)
    logits, boxes, labels, target_boxes, classes = inputs
    logits[2, 4] = math.nan
    *packed, _ = target_packing(labels, target_boxes, classes)
    matched = set_matching(
        logits[None], boxes[None], *packed, class_cost=class_cost, weight_bbox=5.0, groups=groups
    )
    expected = sorted_matches(matched, packed[2])
    options = (class_cost, 1.0, 5.0, 1.0, 0.25, 2.0, 1e-8, groups)
    for mine, other in zip(implementation(*inputs, *options), expected, strict=True):
        assert [len(own) for own in mine] == [groups * len(own) for own in labels]
        assert torch.equal(torch.cat(mine), other)


UNUSUAL = {
    "no image": lambda a: (a[0][:0], a[1][:0], [], [], a[4]),
    "more targets than queries": lambda a: (a[0][:, :5], a[1][:, :5], *a[2:]),
    "targets of fewer images": lambda a: (*a[:2], a[2][:2], a[3][:2], a[4]),
    "boxes of fewer images": lambda a: (a[0], a[1][:2], *a[2:]),
    "boxes of three": lambda a: (a[0], a[1][..., :3], *a[2:]),
    "logits of one image": lambda a: (a[0][0], *a[1:]),
    "integer logits": lambda a: (a[0].long(), *a[1:]),
    "a label too large": lambda a: (*a[:4], 1),
    "pixels": lambda a: (*a[:3], [b * 100 for b in a[3]], a[4]),
    "half targets": lambda a: (*a[:3], [b.half() for b in a[3]], a[4]),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_does_nothing_where_anything_is_unusual(name, implementation):
    torch.manual_seed(1)
    inputs = arguments()
    inputs[2][0][0] = 3
    queries, places = implementation(*UNUSUAL[name](inputs))
    assert len(queries) == len(places) == 0


def test_groups_that_do_not_divide_the_queries(implementation):
    queries, _ = implementation(*arguments(), *DEFAULTS[:7], 5)
    assert len(queries) == 0


def test_opcheck():
    inputs = (*arguments(), *DEFAULTS)
    torch.library.opcheck(torch.ops.detr_fast.image_matching.default, inputs)

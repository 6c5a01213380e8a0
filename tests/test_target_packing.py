"""target_packing: what it joins, and that it calls nothing sound that is not."""

import math

import pytest
import torch

from detr_fast.ops.target_packing import target_packing
from detr_fast.reference import target_packing as reference

IMPLEMENTATIONS = {"operation": target_packing, "reference": reference.target_packing}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def targets(counts=(3, 0, 2), dtype=torch.float32):
    labels = [torch.randint(5, (count,)) for count in counts]
    boxes = [torch.rand(count, 4, dtype=dtype) * 0.5 + 0.2 for count in counts]
    return labels, boxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("counts", [(3, 0, 2), (0,), (0, 0), (70,)])
def test_joins_the_images(counts, dtype, implementation):
    labels, boxes = targets(counts, dtype)
    all_labels, all_boxes, offsets, sound = implementation(labels, boxes, 5)
    assert sound.item() is True
    assert torch.equal(all_labels, torch.cat(labels))
    assert torch.equal(all_boxes, torch.cat(boxes))
    assert all_boxes.dtype == dtype
    assert offsets.tolist() == [sum(counts[:b]) for b in range(len(counts) + 1)]


def test_strides_do_not_matter(implementation):
    labels, boxes = targets((4, 3))
    strided = (
        [torch.stack([own, own], 1)[:, 1] for own in labels],
        [own.t().contiguous().t() for own in boxes],
    )
    for mine, other in zip(
        implementation(*strided, 5), implementation(labels, boxes, 5), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("image", [0, 2])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((column, value) for column in range(4) for value in (math.nan, math.inf, -0.02, 1.02)),
        (2, 0.0),
        (3, -0.0),
    ],
)
def test_a_bad_box_is_not_sound(column, value, image, implementation):
    labels, boxes = targets()
    boxes[image][1, column] = value
    assert not implementation(labels, boxes, 5)[3]


def test_rounding_is_sound(implementation):
    labels, boxes = targets()
    boxes[0][0, 0], boxes[2][1, 3] = -0.009, 1.009
    assert implementation(labels, boxes, 5)[3]


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_bad_label_is_not_sound(label, implementation):
    labels, boxes = targets()
    labels[2][1] = label
    assert not implementation(labels, boxes, 5)[3]


@pytest.mark.parametrize(
    "change",
    [
        lambda labels, boxes: ([], []),
        lambda labels, boxes: (labels, boxes[:2]),
        lambda labels, boxes: (labels[:2], boxes),
        lambda labels, boxes: ([own.int() for own in labels], boxes),
        lambda labels, boxes: (labels, [own.half() for own in boxes]),
        lambda labels, boxes: (labels, [boxes[0].double(), *boxes[1:]]),
        lambda labels, boxes: (labels, [boxes[0], torch.empty(0), boxes[2]]),
        lambda labels, boxes: (labels, [boxes[0][:2], *boxes[1:]]),
        lambda labels, boxes: (labels, [boxes[0][:, :3], *boxes[1:]]),
        lambda labels, boxes: ([labels[0][None], *labels[1:]], boxes),
    ],
)
def test_what_is_unusual_is_not_sound(change, implementation):
    assert not implementation(*change(*targets()), 5)[3]


def test_opcheck():
    torch.library.opcheck(torch.ops.detr_fast.target_packing.default, (*targets(), 5))

"""Canvases: few, divisible, large enough, and hardly larger."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_fast.data.transforms import resized_size
from detr_fast.inference.canvas import canvas

SHORT_SIDES = (64, 224, 480, 640, 800, 1000)
SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.sampled_from((None, *SHORT_SIDES)))
def test_an_image_fits_on_its_canvas_and_the_canvas_on_itself(height, width, short_side):
    found = canvas(height, width, short_side)
    assert found[0] >= height
    assert found[1] >= width
    assert all(side % 32 == 0 for side in found)
    assert canvas(*found, short_side) == found
    step = 64 if short_side is None else -(-short_side // 6) + 32
    assert found[0] - height < step
    assert found[1] - width < step


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((800, 1066), 800, (800, 1088)),  # 4:3
        ((1201, 800), 800, (1216, 800)),  # 3:2, and a pixel more
        ((666, 1332), 800, (672, 1344)),  # 2:1
        ((800, 1333), 800, (800, 1344)),
        ((480, 640), 480, (480, 640)),
        ((64, 64), 64, (64, 64)),
        ((427, 640), None, (448, 640)),
        ((1, 1), 800, (160, 160)),
    ],
)
def test_canvases_known_by_hand(size, short_side, expected):
    assert canvas(*size, short_side) == expected


def test_images_of_any_ratio_need_few_canvases():
    sizes = {
        resized_size(*size, 800, 1333)
        for side in range(1, 641)
        for size in ((side, 640), (640, side))
    }
    assert len({canvas(*size, 800) for size in sizes}) == 21


def test_canvases_of_coco_hold_little_padding(shared_data):
    sizes = json.loads((shared_data / "val2017_sizes.json").read_text())
    sizes = [
        resized_size(height, width, 800, 1333)
        for _, height, width in sizes["first"] + sizes["more"]
    ]
    canvases = [canvas(*size, 800) for size in sizes]
    assert len(set(canvases)) == 10
    pixels = sum(height * width for height, width in sizes)
    assert sum(height * width for height, width in canvases) / pixels < 1.028

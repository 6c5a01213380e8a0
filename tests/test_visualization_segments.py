"""Masks and panoptic maps in colour, with the names of their classes."""

import numpy as np
import pytest
from PIL import Image

from detr_fast.visualization.draw import class_colour
from detr_fast.visualization.segments import draw_masks, draw_segments

GREY = (90, 90, 90)


def grey(width, height):
    return Image.new("RGB", (width, height), GREY)


def mixed(class_id, share=0.5):
    return tuple(
        round((1 - share) * g + share * c)
        for g, c in zip(GREY, class_colour(class_id), strict=True)
    )


def test_a_mask_is_coloured_inside_and_on_its_rim():
    masks = np.zeros((1, 40, 60), dtype=bool)
    masks[0, 10:30, 20:50] = True
    image = grey(60, 40)
    picture = draw_masks(image, masks, [3])
    assert picture.getpixel((35, 20)) == mixed(3)
    assert picture.getpixel((20, 20)) == class_colour(3)
    assert picture.getpixel((5, 5)) == GREY
    assert image.getpixel((35, 20)) == GREY


def test_the_first_mask_lies_on_top():
    masks = np.ones((2, 20, 20), dtype=bool)
    picture = draw_masks(grey(20, 20), masks, [1, 2], opacity=1.0)
    assert picture.getpixel((10, 10)) == class_colour(1)


def test_segments_of_one_class_have_different_shades_and_a_white_border():
    ids = np.zeros((400, 600), dtype=np.int32)
    ids[:, 200:400], ids[:, 400:] = 7, 9
    picture = np.asarray(draw_segments(grey(600, 400), ids, [7, 9], [4, 4], ["", ""]))
    assert tuple(picture[50, 100]) == GREY
    assert tuple(picture[50, 300]) == mixed(4)
    assert (picture[50, 500] != picture[50, 300]).any()
    assert tuple(picture[50, 399]) == (255, 255, 255)


def test_captions_are_written_on_their_segments():
    ids = np.ones((400, 600), dtype=np.int32)
    ids[:, 300:] = 2
    plain = np.asarray(draw_segments(grey(600, 400), ids, [1, 2], [4, 5], ["", ""]), dtype=int)
    named = np.asarray(draw_segments(grey(600, 400), ids, [1, 2], [4, 5], ["cat", ""]), dtype=int)
    changed = np.argwhere((plain != named).any(-1))
    assert len(changed) > 100
    assert changed[:, 1].max() < 300


def test_small_pictures_are_enlarged():
    ids = np.ones((32, 64), dtype=np.int32)
    assert draw_segments(grey(64, 32), ids, [1], [1], ["cat"]).width >= 384
    assert draw_segments(grey(64, 32), ids, [1], [1], ["cat"], enlarge=False).size == (64, 32)


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"masks have shape \(1, 4, 5\) for 1 class ids"):
        draw_masks(grey(4, 5), np.zeros((1, 4, 5)), [1])
    with pytest.raises(ValueError, match="the map has shape"):
        draw_segments(grey(4, 5), np.zeros((4, 5)), [], [], [])
    with pytest.raises(ValueError, match="2 segments, 1 class ids and 1 captions"):
        draw_segments(grey(4, 5), np.zeros((5, 4)), [1, 2], [1], ["a"])

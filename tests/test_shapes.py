"""Generated shapes: determinism, annotations that fit the pixels, and COCO's layout on disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.data.shapes import SHAPES_LABEL_MAP, ShapesDataset, render_scene, write_shapes


def test_a_scene_is_a_function_of_seed_and_index():
    first, again = render_scene(3, 7), render_scene(3, 7)
    np.testing.assert_array_equal(first.image, again.image)
    assert [o.label for o in first.objects] == [o.label for o in again.objects]
    for seed, index in ((4, 7), (3, 8)):
        other = render_scene(seed, index).image
        assert first.image.shape != other.shape or not np.array_equal(first.image, other)


@pytest.mark.parametrize("index", range(20))
def test_boxes_are_tight_around_visible_pixels_and_masks_do_not_overlap(index):
    scene = render_scene(0, index, objects=(4, 8))
    covered = np.zeros(scene.image.shape[:2], dtype=int)
    for instance in scene.objects:
        x0, y0, x1, y1 = instance.box
        inside = instance.mask[y0:y1, x0:x1]
        assert inside.sum() == instance.mask.sum() > 0
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        covered += instance.mask
    assert covered.max() <= 1


def test_sizes_counts_and_classes_span_what_was_asked_for():
    scenes = [render_scene(0, index, side=(40, 72), objects=(0, 3)) for index in range(200)]
    sides = [side for scene in scenes for side in scene.image.shape[:2]]
    assert (min(sides), max(sides)) == (40, 72)
    assert {len(scene.objects) for scene in scenes} == {0, 1, 2, 3}
    labels = {instance.label for scene in scenes for instance in scene.objects}
    assert labels == set(range(len(SHAPES_LABEL_MAP.names)))


def test_items_and_ground_truth_agree():
    dataset = ShapesDataset(12, seed=5)
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(range(12))
    for index, (image, target) in enumerate(dataset):
        assert image.dtype == torch.uint8
        entry = truth["images"][index]
        assert tuple(image.shape) == (3, entry["height"], entry["width"])
        annotations = [a for a in truth["annotations"] if a["image_id"] == index]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
        assert target["boxes"].tolist() == corners
        assert [SHAPES_LABEL_MAP.category_id(label) for label in target["labels"].tolist()] == [
            a["category_id"] for a in annotations
        ]
        assert target["area"].tolist() == [a["area"] for a in annotations]


def test_empty_scenes_and_an_empty_set():
    image, target = ShapesDataset(1, objects=(0, 0))[0]
    assert image.shape[0] == 3
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64
    assert ShapesDataset(0).ground_truth()["images"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length of a shapes data set is -1"),
        ({"length": 1, "side": (64, 32)}, "side is"),
        ({"length": 1, "side": (8, 64)}, "at least 32 px"),
        ({"length": 1, "objects": (3, 2)}, "objects is"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**options)


def test_an_index_outside_the_set_is_refused():
    with pytest.raises(IndexError, match="shapes image 3 of a set of 3"):
        ShapesDataset(3)[3]


def test_written_shapes_have_the_layout_of_coco(tmp_path):
    root = write_shapes(tmp_path / "shapes", train=3, val=2, seed=9, side=(48, 64))
    for split, length, seed in (("train", 3, 9), ("val", 2, 10)):
        truth = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        dataset = ShapesDataset(length, seed, side=(48, 64))
        assert truth == dataset.ground_truth()
        for index, entry in enumerate(truth["images"]):
            stored = np.asarray(Image.open(root / f"{split}2017" / entry["file_name"]))
            np.testing.assert_array_equal(stored, dataset.scene(index).image)

"""Pictures: what is drawn where, on any size, and curves of logs with and without every field."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from detr_fast.visualization.attention import draw_attention
from detr_fast.visualization.curves import plot_log
from detr_fast.visualization.draw import class_colour, draw_boxes

GREY = (90, 90, 90)


def grey(width, height, mode="RGB"):
    return Image.new("RGB", (width, height), GREY).convert(mode)


def differs(picture, box):
    """Whether something was drawn inside of a box of pixels."""
    x0, y0, x1, y1 = box
    return bool((np.asarray(picture)[y0:y1, x0:x1] != GREY).any())


# Boxes


def test_a_box_has_its_colour_on_its_edge_and_none_inside():
    picture = draw_boxes(grey(600, 400), [[100, 150, 300, 350]], [3], ["cat 0.98"])
    assert picture.size == (600, 400)
    for x, y in ((100, 250), (299, 250), (200, 349), (200, 151)):
        assert picture.getpixel((x, y)) == class_colour(3)
    assert not differs(picture, (110, 180, 290, 340))
    assert not differs(picture, (320, 0, 600, 400))


def test_the_image_is_not_modified():
    image = grey(600, 400)
    draw_boxes(image, [[10, 50, 100, 100]], [3], ["cat"])
    assert not differs(image, (0, 0, 600, 400))


def test_no_boxes_give_the_image_itself():
    assert not differs(draw_boxes(grey(600, 400), np.zeros((0, 4)), [], []), (0, 0, 600, 400))


def test_the_caption_stands_above_the_box_or_below_where_there_is_no_room():
    above = draw_boxes(grey(600, 400), [[100, 150, 300, 350]], [3], ["cat"])
    assert differs(above, (105, 130, 120, 148))
    below = draw_boxes(grey(600, 400), [[100, 0, 300, 200]], [3], ["cat"])
    assert differs(below, (105, 205, 120, 215))


def test_captions_of_one_place_do_not_cover_each_other():
    boxes = [[200, 150, 300, 250]] * 4
    captions = [f"thing {i}" for i in range(4)]
    together = np.asarray(draw_boxes(grey(600, 400), boxes, [0, 1, 2, 3], captions)).reshape(-1, 3)
    for class_id in range(4):
        alone = draw_boxes(grey(600, 400), boxes[:1], [class_id], captions[:1])
        own = (np.asarray(alone).reshape(-1, 3) == class_colour(class_id)).all(1).sum()
        kept = (together == class_colour(class_id)).all(1).sum()
        outline = 4 * 100 * 3
        assert kept > own - outline


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 30), (3000, 4), (4, 3000), (2500, 1800)])
@pytest.mark.parametrize("box", [[0, 0, 1, 1], [-50, -50, 9000, 9000], [2, 2, 2, 2], [5, 5, 1, 1]])
def test_any_size_of_picture_and_box(size, box):
    picture = draw_boxes(grey(*size), [box], [1], ["something long 0.51"])
    assert differs(picture, (0, 0, *picture.size))


def test_small_pictures_are_enlarged_by_a_whole_factor():
    assert draw_boxes(grey(128, 96), [[0, 0, 9, 9]], [1], ["cat"]).size == (512, 384)
    kept = draw_boxes(grey(128, 96), [[0, 0, 9, 9]], [1], ["cat"], enlarge=False)
    assert kept.size == (128, 96)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    assert draw_boxes(grey(600, 400, mode), [[9, 50, 90, 90]], [1], ["cat"]).mode == "RGB"


def test_names_of_other_alphabets():
    draw_boxes(grey(600, 400), [[9, 50, 90, 90]], [1], ["Straßenbahn κύκλος трамвай 0.50"])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 boxes, 2 class ids and 1 captions"):
        draw_boxes(grey(60, 40), [[0, 0, 1, 1]], [1, 2], ["cat"])


def test_colours_are_fixed_and_differ():
    colours = [class_colour(i) for i in range(100)]
    assert len(set(colours)) == 100
    assert colours == [class_colour(i) for i in range(100)]
    neighbours = np.abs(np.diff(np.array(colours), axis=0)).max(1)
    assert neighbours.min() > 60


# Attention


def test_attention_is_bright_where_the_weight_is():
    weights = np.zeros((1, 4, 6), np.float32)
    weights[0, 1, 4] = 1
    box = [[0, 0, 30, 40]]
    picture = draw_attention(grey(600, 400), box, [3], ["cat"], weights, (4, 6), width=600)
    assert picture.size == (600, 400)
    brightness = np.asarray(picture.convert("L"))
    assert brightness[150, 450] > 200
    assert brightness[350, 450] < 100
    assert brightness[150, 150] < 100


def test_attention_beyond_the_image_is_cut_off():
    """The image takes up 2 of 4 rows: the second row of cells reaches to its lower edge."""
    weights = np.zeros((1, 4, 4), np.float32)
    weights[0, 3] = 1
    picture = draw_attention(grey(400, 400), [[0, 0, 9, 9]], [3], [""], weights, (2, 4), width=400)
    assert np.asarray(picture.convert("L"))[200:].max() < 100


def test_attention_of_several_objects_is_side_by_side():
    weights = np.ones((5, 4, 4), np.float32)
    boxes = [[50, 80, 90, 90]] * 5
    picture = draw_attention(grey(300, 200), boxes, [1] * 5, ["cat"] * 5, weights, (4, 4), 150)
    assert picture.size == (2 * 150 + 6, 3 * 100 + 2 * 6)


def test_attention_needs_as_many_maps_as_objects():
    with pytest.raises(ValueError, match="1 boxes, 1 class ids, 1 captions and 2 attention maps"):
        draw_attention(grey(9, 9), [[0, 0, 1, 1]], [1], ["cat"], np.ones((2, 1, 1)), (1, 1))


# Curves


def record(epoch, **more):
    losses = {
        f"{part}_{name}": 1.0 / (epoch + 1)
        for part in ("train", "test")
        for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "class_error")
    }
    ap = [0.1 * epoch] * 6 + [-1] * 6
    return {"epoch": epoch, "train_lr": 1e-4, **losses, "test_coco_eval_bbox": ap, **more}


def test_curves_of_a_log_file(tmp_path):
    log = tmp_path / "log.txt"
    lines = [json.dumps(record(epoch)) for epoch in range(5)]
    log.write_text("\n".join([*lines, lines[-1][:20]]))
    path = plot_log(log, tmp_path / "results.png")
    assert path == tmp_path / "results.png"
    with Image.open(path) as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize(
    "records",
    [
        [record(0)],
        [{"epoch": 0, "train_loss": 3.0}],
        [{}],
        [record(0), {"epoch": 1, "train_loss": None, "test_coco_eval_bbox": None}],
        [record(0, test_coco_eval_bbox=[None] * 12), record(1, train_loss=float("nan"))],
        [record(0, test_coco_eval_bbox=[-1.0] * 12)],
    ],
)
def test_curves_of_incomplete_records(records, tmp_path):
    assert plot_log(records, tmp_path / "a.png").stat().st_size > 10_000


def test_curves_count_epochs_from_1_as_the_progress_lines_do(tmp_path):
    path = plot_log([record(0), record(1)], tmp_path / "a.svg")
    assert "2 epochs; best AP 0.100 in epoch 2" in path.read_text()


def test_curves_of_masks(tmp_path):
    quality = {"test_PQ_all": {"pq": 0.5}, "test_PQ_th": {"pq": 0.4}, "test_PQ_st": {"pq": None}}
    masks = {"train_loss_mask": 0.1, "test_loss_dice": 0.2, "test_coco_eval_masks": [0.3] * 12}
    boxes = plot_log([record(0)], tmp_path / "boxes.png")
    both = plot_log([record(0, **masks, **quality), record(1)], tmp_path / "masks.svg")
    drawn = both.read_text()
    assert "2 epochs; best PQ 0.500 in epoch 1" in drawn
    for title in ("mask focal loss", "mask dice loss", "AP of masks", "panoptic quality"):
        assert f"<!-- {title}" in drawn
    with (
        Image.open(boxes) as without,
        Image.open(plot_log([record(0, **masks)], both.with_suffix(".png"))) as image,
    ):
        assert image.height > without.height
    assert "best mask AP 0.300" in plot_log([record(0, **masks)], both).read_text()


def test_curves_keep_out_of_the_global_state_of_matplotlib(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_log([record(0)], tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_damaged_line_is_named(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text('{"epoch": 0}\n{"epo\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match=r"log\.txt, line 2 is not JSON"):
        plot_log(log, tmp_path / "a.png")


def test_log_without_epochs(tmp_path):
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(ValueError, match=r"log\.txt has no epoch"):
        plot_log(tmp_path / "log.txt", tmp_path / "a.png")
    with pytest.raises(ValueError, match="the log has no epoch"):
        plot_log([], tmp_path / "a.png")

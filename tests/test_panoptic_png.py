"""Segment ids in PNGs: exact up to the largest, and files that are no panoptic maps refused."""

import numpy as np
import pytest
from PIL import Image

from detr_fast.data.panoptic_png import (
    LARGEST_ID,
    PanopticError,
    ids_to_rgb,
    read_panoptic_png,
    rgb_to_ids,
    write_panoptic_png,
)


def test_colours_are_those_of_coco():
    # id = R + 256 G + 256^2 B
    assert ids_to_rgb(np.array([[1, 256, 65536, 8_345_537]])).tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [193, 87, 127]]
    ]
    assert rgb_to_ids(np.array([[[193, 87, 127]]], dtype=np.uint8)).tolist() == [[8_345_537]]


def test_every_id_survives_its_colour():
    ids = np.arange(LARGEST_ID + 1, dtype=np.int32).reshape(4096, 4096)
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_ids_survive_a_file(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, LARGEST_ID + 1, (37, 53))
    ids[0, :2] = 0, LARGEST_ID
    path = tmp_path / "map.png"
    write_panoptic_png(path, ids)
    assert np.array_equal(read_panoptic_png(path, size=(37, 53)), ids)


@pytest.mark.parametrize("outlier", [-1, LARGEST_ID + 1])
def test_ids_without_a_colour_are_refused(tmp_path, outlier):
    with pytest.raises(ValueError, match=f"segment id {outlier} has no colour"):
        write_panoptic_png(tmp_path / "map.png", np.array([[0, outlier]]))


def test_formats_that_lose_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not named \.png"):
        write_panoptic_png(tmp_path / "map.jpg", np.zeros((2, 2)))
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    with pytest.raises(PanopticError, match="is a JPEG; only PNG"):
        read_panoptic_png(tmp_path / "photo.jpg")


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16"])
def test_other_modes_are_refused(tmp_path, mode):
    path = tmp_path / "map.png"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(PanopticError, match=r"map\.png has mode .*8-bit RGB"):
        read_panoptic_png(path)


def test_smoothed_map_is_refused(tmp_path):
    ids = np.repeat(np.repeat([[1000, 70_000], [8, 300]], 8, 0), 8, 1)
    path = tmp_path / "map.png"
    smooth = Image.fromarray(ids_to_rgb(ids)).resize((24, 24), Image.Resampling.BILINEAR)
    smooth.save(path)
    with pytest.raises(PanopticError, match=r"does not list.*resized with smoothing"):
        read_panoptic_png(path, segment_ids=[1000, 70_000, 8, 300])


def test_missing_damaged_and_wrong_size_are_refused(tmp_path):
    with pytest.raises(PanopticError, match="there is no such panoptic PNG"):
        read_panoptic_png(tmp_path / "none.png")
    path = tmp_path / "map.png"
    write_panoptic_png(path, np.full((30, 40), 9))
    with pytest.raises(PanopticError, match="is 40x30 pixels, its image 30x40"):
        read_panoptic_png(path, size=(40, 30))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PanopticError, match="truncated or corrupt"):
        read_panoptic_png(path)

"""Reading ahead: the results and errors of reading one by one, and at most a batch ahead."""

import threading
import warnings

import numpy as np
import pytest
from PIL import Image
from random_models import model_with_statistics

from detr_fast import Detector
from detr_fast.inference.loading import Preprocess
from detr_fast.inference.prefetch import read_ahead

BATCHES = [[3, 1], [4], [1, 5, 9]]
# Long enough for a thread that has something to do, and waited for in full only by a failure.
SECONDS = 20


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_batches_come_in_their_order(threads):
    assert list(read_ahead(lambda x: 10 * x, BATCHES, threads)) == [[30, 10], [40], [10, 50, 90]]
    assert list(read_ahead(lambda x: x, [], threads)) == []


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_batches_are_gathered_where_they_are_read(threads):
    gatherers = []

    def gather(items):
        gatherers.append(threading.current_thread())
        return sum(items)

    sums = read_ahead(lambda x: 10 * x, BATCHES * 20, threads, gather)
    assert list(sums) == [40, 40, 150] * 20
    assert (threading.current_thread() in gatherers) == (threads == 0)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_gathering_comes_with_its_batch(threads):
    batches = read_ahead(lambda x: x, [[1, 2], [3]], threads, lambda items: items[1])
    assert next(batches) == 2
    with pytest.raises(IndexError):
        next(batches)


def test_one_batch_is_read_while_the_one_before_is_used_and_no_more():
    begun = {item: threading.Event() for item in range(6)}

    def read(item):
        begun[item].set()
        return item

    batches = read_ahead(read, [[0, 1], [2, 3], [4, 5]], threads=2)
    assert next(batches) == [0, 1]
    assert all(begun[item].wait(SECONDS) for item in (2, 3))
    assert not begun[4].is_set()
    assert next(batches) == [2, 3]
    assert all(begun[item].wait(SECONDS) for item in (4, 5))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_with_its_batch_and_ends_the_reading(threads):
    read = []

    def divide(item):
        read.append(item)
        return 12 // item

    batches = read_ahead(divide, [[1, 2], [3, 0, 4], [5], [6]], threads)
    assert next(batches) == [12, 6]
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert list(batches) == []
    assert 6 not in read


def test_no_thread_is_left_behind():
    before = threading.active_count()
    batches = read_ahead(lambda item: item, [[1], [2], [3]], threads=3)
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def detector():
    size = Preprocess(short_side=48, max_size=96)
    return Detector(model_with_statistics("detr_tiny").double(), "cpu", preprocess=size)


def picture(seed):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (40 + seed, 60 - seed, 3), dtype=np.uint8))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_folder_is_what_its_images_are_one_by_one(detector, tmp_path, batch_size):
    for seed in range(7):
        picture(seed).save(tmp_path / f"{seed}.png")
    together = detector.predict(tmp_path, threshold=0, batch_size=batch_size)
    assert [found.path.name for found in together] == [f"{seed}.png" for seed in range(7)]
    for found in together:
        assert np.array_equal(found.image(), Image.open(found.path))
        if batch_size == 1:
            alone = detector.predict(found.path, threshold=0)
            assert np.array_equal(found.boxes_xyxy, alone.boxes_xyxy)
            assert np.array_equal(found.scores, alone.scores)


def test_the_first_damaged_image_of_a_list_is_the_one_named(detector, tmp_path):
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_text("no image")
    sources = [picture(0), picture(1), tmp_path / "b.png", tmp_path / "c.png", 17]
    for batch_size in (1, 2, 5):
        with pytest.raises(ValueError, match=r"b\.png \(8 bytes\) is not an image"):
            detector.predict(sources, batch_size=batch_size)


def test_an_opened_file_may_stand_in_a_list_many_times(detector, tmp_path):
    Image.fromarray(np.tile(np.asarray(picture(0)), (6, 6, 1))).save(tmp_path / "a.png")
    expected = detector.predict(tmp_path / "a.png", threshold=0)
    with Image.open(tmp_path / "a.png") as image:
        for found in detector.predict([image] * 8, threshold=0):
            assert np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_filters_of_warnings_are_left_as_they_were(detector, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(16)]
    for path in paths:
        picture(0).save(path)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        detector.predict(paths)
        assert warnings.filters == before

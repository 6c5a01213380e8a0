"""Buckets: every image once, little padding, the same over all processes, and the same answers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import model_with_statistics

from detr_fast import Detector
from detr_fast.cli.main import main
from detr_fast.data import build
from detr_fast.data.buckets import BucketSampler, size_buckets
from detr_fast.data.build import build_loader
from detr_fast.data.coco import CocoDetection
from detr_fast.data.images import ImageError
from detr_fast.data.panoptic import build_coco_panoptic
from detr_fast.data.sampling import EpochSampler
from detr_fast.data.shapes import ShapesDataset, write_shapes
from detr_fast.data.transforms import resized_size, val_transform
from detr_fast.inference.images import image_size, read_image
from detr_fast.inference.loading import Preprocess

NATIVE = Preprocess(short_side=None, max_size=None)


def coco_sizes(shared_data, count=100):
    table = json.loads((shared_data / "val2017_sizes.json").read_text())
    return [(h, w) for _, h, w in (table["first"] + table["more"])[:count]]


def valid_share(sizes, batches):
    """Pixels of images in all pixels of their batches."""
    valid = sum(h * w for h, w in sizes)
    padded = 0
    for batch in batches:
        height, width = (max(sizes[i][axis] for i in batch) for axis in (0, 1))
        padded += len(batch) * height * width
    return valid / padded


# Which images


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 16])
@pytest.mark.parametrize("count", [0, 1, 5, 16, 100])
def test_every_image_once_in_batches_of_equal_length(count, batch_size, shares):
    rng = np.random.default_rng(count)
    sizes = [tuple(size) for size in rng.integers(20, 60, (count, 2)).tolist()]
    batches = size_buckets(sizes, batch_size, shares)
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    lengths = [len(batch) for batch in batches]
    assert max(lengths, default=0) <= batch_size
    assert max(lengths, default=1) - min(lengths, default=1) <= 1
    assert min(lengths, default=1) > 0
    held = [sum(lengths[share::shares]) for share in range(shares)]
    assert max(held) - min(held) <= 1
    assert batches == size_buckets(list(sizes), batch_size, shares)


def test_likes_come_together():
    wide, tall, square = (30, 60), (60, 30), (40, 40)
    assert size_buckets([wide, tall, square] * 2, 2) == [[0, 3], [2, 5], [1, 4]]
    # Scale does not count: a resize to one short side takes it away.
    assert size_buckets([(30, 60), (40, 40), (300, 600), (400, 400)], 2) == [[0, 2], [1, 3]]


def test_sizes_of_coco_are_mostly_pixels_of_images(shared_data):
    sizes = coco_sizes(shared_data)
    resized = [resized_size(*size, 800, 1333) for size in sizes]
    in_order = [range(100)[i : i + 16] for i in range(0, 100, 16)]
    assert valid_share(resized, in_order) == pytest.approx(0.591, abs=0.001)
    buckets = size_buckets(sizes, 16)
    assert valid_share(resized, buckets) == pytest.approx(0.944, abs=0.001)
    assert valid_share(resized, size_buckets(resized, 16)) > 0.94


def test_what_cannot_be_divided():
    with pytest.raises(ValueError, match="batch_size is 0, shares 1"):
        size_buckets([(1, 1)], 0)
    with pytest.raises(ValueError, match="rank is 2; expected 0 to 1"):
        BucketSampler([(1, 1)], 2, rank=2, world_size=2)


# The loader


def test_processes_share_the_images_and_each_keeps_its_seed():
    sizes = [(40 + i % 7, 50) for i in range(23)]
    shares = [list(BucketSampler(sizes, 4, seed=5, rank=r, world_size=3)) for r in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    samples = [sample for share in shares for batch in share for sample in batch]
    assert sorted(samples) == sorted(EpochSampler(23, shuffle=False, seed=5))


def test_loader_gives_every_image_with_less_padding():
    shapes = ShapesDataset(20, side=(40, 90), transform=val_transform(48))
    padding, seen = {}, {}
    for buckets in (False, True):
        loader = build_loader(shapes, 4, buckets=buckets, max_images=18)
        assert len(loader) == 5
        batches = list(loader)
        padding[buckets] = sum(batch.mask.sum().item() for batch, _ in batches)
        seen[buckets] = [int(t["image_id"]) for _, targets in batches for t in targets]
    assert seen[False] == list(range(18))
    assert sorted(seen[True]) == seen[False]
    assert padding[True] < 0.5 * padding[False]


def test_loaders_of_several_processes_share_the_images(monkeypatch):
    monkeypatch.setattr(build.dist, "get_world_size", lambda: 2)
    shapes = ShapesDataset(11, side=(40, 90), transform=val_transform(None))
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(build.dist, "get_rank", lambda rank=rank: rank)
        loader = build_loader(shapes, 3, buckets=True, distributed=True)
        assert len(loader) == 2
        seen += [int(t["image_id"]) for _, targets in loader for t in targets]
    assert sorted(seen) == list(range(11))


def test_loader_of_single_images_keeps_their_order():
    loader = build_loader(ShapesDataset(5, transform=val_transform(None)), 1, buckets=True)
    assert [int(t["image_id"]) for _, (t,) in loader] == list(range(5))


@pytest.mark.parametrize("option", ["shuffle", "drop_last"])
def test_buckets_are_for_evaluation(option):
    with pytest.raises(ValueError, match="no shuffle, no drop_last"):
        build_loader(ShapesDataset(4), 2, buckets=True, **{option: True})


# Sizes without decoding


def refuse(*_):
    raise AssertionError("an image was decoded")


def test_data_sets_know_sizes_without_decoding(tmp_path, monkeypatch):
    write_shapes(tmp_path, train=0, val=3, side=(40, 70), stuff=True)
    folder, file = tmp_path / "val2017", tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for image in content["images"][1:]:
        del image["height"]
    (tmp_path / "without.json").write_text(json.dumps(content))
    shapes = ShapesDataset(3, seed=1, side=(40, 70))
    expected = [tuple(shapes[i][0].shape[-2:]) for i in range(3)]
    assert len(set(expected)) == 3
    monkeypatch.setattr(Image.Image, "convert", refuse)
    for dataset in (
        shapes,
        CocoDetection(folder, file),
        CocoDetection(folder, tmp_path / "without.json"),
        build_coco_panoptic(tmp_path, "val"),
    ):
        assert [dataset.image_size(i) for i in range(3)] == expected


def test_a_header_that_cannot_be_read_is_named_or_skipped(tmp_path):
    write_shapes(tmp_path, train=0, val=2)
    folder, file = tmp_path / "val2017", tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    del content["images"][0]["width"]
    file.write_text(json.dumps(content))
    (folder / content["images"][0]["file_name"]).write_text("no image")
    with pytest.raises(ImageError, match=r"000000000000\.png \(image id 0\): cannot be decoded"):
        CocoDetection(folder, file).image_size(0)
    skipping = CocoDetection(folder, file, on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        assert skipping.image_size(0) == skipping.image_size(1)


def test_sizes_of_what_a_detector_takes(tmp_path):
    array = np.zeros((30, 50, 3), np.uint8)
    rotated = Image.fromarray(array).getexif()
    rotated[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "turned.jpg", exif=rotated)
    Image.fromarray(array).save(tmp_path / "grey.png")
    for source in (
        array,
        array[:, :, 0],
        array.transpose(2, 0, 1),
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array),
        Image.fromarray(array),
        Image.open(tmp_path / "turned.jpg"),
        tmp_path / "turned.jpg",
        str(tmp_path / "grey.png"),
        np.zeros((3, 5, 3), np.uint8),
        torch.zeros(3, 5, 3),
    ):
        assert image_size(source) == tuple(read_image(source).shape[1:])
    assert image_size(tmp_path / "turned.jpg") == (50, 30)


# Answers


SIZES = ((40, 64), (64, 40), (40, 60), (61, 40), (48, 48))


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize("exact", [True, False])
def test_detector_answers_in_the_order_of_its_input(exact):
    model = model_with_statistics("detr_tiny").double()
    detector = Detector(model, "cpu", exact_batches=exact, preprocess=NATIVE)
    batches = []
    model.register_forward_pre_hook(
        lambda _, args: batches.append([tuple(image.shape[1:]) for image in args[0]])
    )
    results = detector.predict(pictures(), threshold=0, batch_size=2)
    assert [found.image_size for found in results] == list(SIZES)
    assert [set(batch) for batch in batches] == (
        [{SIZES[0], SIZES[2]}, {SIZES[4], SIZES[3]}, {SIZES[1]}]
        if exact
        else [set(SIZES[:2]), set(SIZES[2:4]), {SIZES[4]}]
    )
    if exact:
        for found, picture in zip(results, pictures(), strict=True):
            alone = detector.predict(picture, threshold=0)
            np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, rtol=0, atol=1e-4)
            assert found.class_ids.tolist() == alone.class_ids.tolist()


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_engine_and_model_bucket_alike(precision):
    model = model_with_statistics("detr_tiny")
    detector = Detector(model, "cpu", exact_batches=True, precision=precision, preprocess=NATIVE)
    results = detector.predict(pictures(), threshold=0, batch_size=3)
    assert [found.image_size for found in results] == list(SIZES)
    assert detector.predict([], batch_size=3) == []


def test_a_list_with_a_damaged_image_names_it(tmp_path):
    detector = Detector(model_with_statistics("detr_tiny"), "cpu", exact_batches=True)
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.png \(6 bytes\) is not an image"):
        detector.predict([*pictures(), tmp_path / "page.png"], batch_size=4)
    with pytest.raises(ValueError, match=r"image 5 of the list: .*shape"):
        detector.predict([*pictures(), np.zeros((0, 4, 3), np.uint8)], batch_size=4)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        detector.predict([*pictures(), tmp_path / "none.png"], batch_size=4)


def test_eval_buckets_exact_batches_and_gives_the_same_figures(tmp_path, monkeypatch):
    write_shapes(tmp_path, train=1, val=12, side=(40, 64))
    asked = []
    sampler = build.BucketSampler
    monkeypatch.setattr(
        build, "BucketSampler", lambda *args, **kw: asked.append(args) or sampler(*args, **kw)
    )
    figures = {}
    for name, options in {
        "alone": ["--batch_size", "1"],
        "compatible": ["--batch_size", "4"],
        "buckets": ["--batch_size", "4", "--exact_batches"],
    }.items():
        output = tmp_path / f"{name}.json"
        arguments = ["--model", "detr_tiny", "--coco_path", str(tmp_path), "--device", "cpu"]
        assert main(["eval", *arguments, *options, "--output", str(output)]) == 0
        figures[name] = json.loads(output.read_text())
        assert figures[name]["images"] == 12
        assert bool(asked) == (name == "buckets")
    assert figures["buckets"]["AP"] == pytest.approx(figures["alone"]["AP"], abs=1e-3)

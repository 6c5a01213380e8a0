"""COCO-format data sets: layout, annotations, image files of every kind, faults."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.data.coco import CocoDetection, build_coco, read_coco_json
from detr_fast.data.images import ImageError, read_image
from detr_fast.data.label_map import COCO_LABEL_MAP, LabelMap
from detr_fast.data.transforms import val_transform

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def annotation(number, box, category=3, image=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


@pytest.fixture
def make(tmp_path):
    """Writes a data set of 40x30 images and opens it."""

    def write(annotations=(), categories=CATEGORIES, images=1, split="train", **options):
        folder = tmp_path / f"{split}2017"
        folder.mkdir()
        entries = []
        for i in range(1, images + 1):
            Image.new("RGB", (40, 30), (i, 0, 0)).save(folder / f"{i}.png")
            entries.append({"id": i, "file_name": f"{i}.png", "height": 30, "width": 40})
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = {"images": entries, "annotations": list(annotations), "categories": categories}
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
        return build_coco(tmp_path, split, **options)

    return write


# Real data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_real_images_load_with_the_boxes_of_the_json(shared_data, split):
    root = shared_data / "coco_tiny"
    content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
    dataset = build_coco(root, split)
    assert dataset.label_map is COCO_LABEL_MAP
    assert len(dataset) == len(content["images"]) == 80
    for entry, (image, target) in zip(content["images"], dataset, strict=True):
        mine = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        mine = [a for a in mine if not a["iscrowd"]]
        assert image.shape == (3, entry["height"], entry["width"])
        assert image.dtype == torch.uint8
        assert target["labels"].tolist() == [a["category_id"] for a in mine]
        boxes = torch.tensor([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(target["boxes"].as_subclass(torch.Tensor), boxes)
        torch.testing.assert_close(target["area"], torch.tensor([float(a["area"]) for a in mine]))
    assert dataset.ground_truth()["annotations"] == content["annotations"]


def test_real_ground_truth_scores_itself_perfectly(shared_data):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = build_coco(shared_data / "coco_tiny", "val")
    truth = COCO()
    truth.dataset = dataset.ground_truth()
    truth.createIndex()
    detections = []
    for _, target in dataset:
        image_id = target["image_id"].item()
        boxes = target["boxes"].as_subclass(torch.Tensor)
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
        for box, label in zip(boxes.tolist(), target["labels"].tolist(), strict=True):
            category = dataset.label_map.category_id(label)
            detections.append(
                {"image_id": image_id, "bbox": box, "category_id": category, "score": 1.0}
            )
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # Images with more than 100 objects aside, everything is found; equal scores leave ties.
    assert evaluation.stats[0] > 0.99


# Annotations --------------------------------------------------------------------------------------


def test_target_contract(make):
    dataset = make([annotation(1, [4, 5, 10, 20], area=150.5)], transform=val_transform(None))
    image, target = dataset[0]
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.float32
    expected = {
        "boxes": torch.tensor([[9 / 40, 0.5, 0.25, 20 / 30]]),
        "labels": torch.tensor([0]),
        "image_id": torch.tensor([1]),
        "area": torch.tensor([150.5]),
        "iscrowd": torch.tensor([0]),
        "orig_size": torch.tensor([30, 40]),
        "size": torch.tensor([30, 40]),
    }
    assert target.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(target[key], value)


def test_crowds_and_degenerate_boxes_are_left_out_and_boxes_clipped(make):
    dataset = make(
        [
            annotation(1, [0, 0, 10, 10], iscrowd=1),
            annotation(2, [5, 5, 0, 10]),
            annotation(3, [5, 5, 10, -2]),
            annotation(4, [50, 5, 10, 10]),
            annotation(5, [float("nan"), 5, 10, 10]),
            annotation(6, [1, 2, 3]),
            annotation(7, [-5, 20, 20, 20], category=7),
            annotation(8, [32, 2, 20, 5]),
        ]
    )
    _, target = dataset[0]
    assert target["boxes"].tolist() == [[0, 20, 15, 30], [32, 2, 40, 7]]
    assert target["labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [400, 100]


def test_annotation_without_area_and_json_without_info(make):
    dataset = make([annotation(1, [5, 5, 10, 4]), annotation(2, [5, 5, 10, 4], area=30)])
    assert dataset[0][1]["area"].tolist() == [40, 30]
    truth = dataset.ground_truth()
    assert [a["area"] for a in truth["annotations"]] == [40, 30]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0]
    assert truth["info"] == {}


def test_annotations_without_ids_are_numbered_from_1(make):
    nameless = annotation(0, [5, 5, 10, 4])
    del nameless["id"]
    truth = make([nameless, nameless]).ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2]


def test_image_without_objects(make):
    _, target = make()[0]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == target["iscrowd"].dtype == torch.int64


@pytest.mark.parametrize("ids", [(1, 5, 90), (0, 1, 2), (4,)], ids=["gaps", "0-based", "one class"])
def test_category_ids_with_gaps_0_based_one_class(make, ids):
    categories = [{"id": i, "name": f"c{i}"} for i in reversed(ids)]
    dataset = make([annotation(n, [n, 0, 2, 2], category=i) for n, i in enumerate(ids)], categories)
    labels = dataset[0][1]["labels"].tolist()
    assert labels == list(range(len(ids)))
    assert [dataset.label_map.category_id(label) for label in labels] == list(ids)


def test_class_absent_from_val_changes_no_index(make):
    make([annotation(1, [0, 0, 5, 5])], split="train")
    val = make([annotation(1, [0, 0, 5, 5], category=7)], CATEGORIES[1:], split="val")
    assert val.label_map.ids == (3, 7)
    assert val[0][1]["labels"].tolist() == [1]


def test_label_beyond_the_classes_is_an_error_at_load(make):
    categories = [*CATEGORIES, {"id": 95, "name": "x"}]
    known = LabelMap.contiguous(CATEGORIES)
    with pytest.raises(
        ValueError,
        match=r"instances_train2017\.json: annotation 12 of image 1 \(1\.png\): "
        r"category_id 95 \('x'\) is not in the label map",
    ):
        make([annotation(12, [0, 0, 5, 5], category=95)], categories, label_map=known)


def test_category_that_the_json_does_not_define(make):
    with pytest.raises(ValueError, match="category_id 8 is not in the label map"):
        make([annotation(12, [0, 0, 5, 5], category=8)])


def test_gap_of_the_coco_layout_is_no_category(make):
    with pytest.raises(ValueError, match="category_id 12 is not in the label map"):
        make([annotation(1, [0, 0, 5, 5], category=12)], label_map=COCO_LABEL_MAP)


def test_survives_pickling_for_spawned_workers(make):
    dataset = make([annotation(1, [4, 5, 10, 20])], transform=val_transform(None))
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0][0], dataset[0][0])


@pytest.mark.parametrize("index", [-1, 1])
def test_index_outside(make, index):
    with pytest.raises(IndexError, match=f"image {index} of a data set of 1"):
        make()[index]


# Files --------------------------------------------------------------------------------------------


def test_wrong_path_says_what_was_looked_for_and_found(tmp_path, make):
    make()
    with pytest.raises(
        FileNotFoundError,
        match=r"looked for \S+val2017, \S+val; found in \S+: annotations, train2017",
    ):
        build_coco(tmp_path, "val")
    (tmp_path / "val2017").mkdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"looked for \S+instances_val2017\.json, .* found in \S+: instances_train2017\.json",
    ):
        build_coco(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"looked for .*nowhere.*found in"):
        build_coco(tmp_path / "nowhere" / "deeper", "val")
    with pytest.raises(FileNotFoundError, match=r"annotation file \S+x\.json is not there"):
        CocoDetection(tmp_path, tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match=r"image folder .* is not there"):
        CocoDetection(tmp_path / "x", tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON, or truncated"),
        ("[1, 2]", "has no list 'images'; expected COCO instances, found list"),
        ('{"images": [], "info": {}}', r"has no list 'annotations'.*found \['images', 'info'\]"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "no 'file_name'"),
        (
            '{"images": [{"id": "a", "file_name": "a"}], "annotations": [], "categories": []}',
            r"images\[0\] has id 'a'; expected an integer",
        ),
    ],
)
def test_malformed_json(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_coco_json(path)


def test_layout_without_the_year(tmp_path, make):
    make([annotation(1, [4, 5, 10, 20])])
    (tmp_path / "train2017").rename(tmp_path / "train")
    (tmp_path / "annotations" / "instances_train2017.json").rename(
        tmp_path / "annotations" / "instances_train.json"
    )
    assert len(build_coco(tmp_path, "train")[0][1]["labels"]) == 1


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-800])
    elif how == "corrupt":
        path.write_bytes(b"this is not an image")
    else:
        path.write_bytes(b"")


FAULTS = {
    "missing": "there is no such file",
    "truncated": "cannot be decoded, truncated or corrupt",
    "corrupt": "cannot be decoded, truncated or corrupt",
    "empty": "cannot be decoded, truncated or corrupt",
}


@pytest.mark.parametrize("how", FAULTS)
def test_missing_truncated_or_corrupt_image_fails_with_its_name(make, how):
    dataset = make(images=3)
    spoil(dataset.image_folder / "2.png", how)
    with pytest.raises(ImageError, match=rf"2\.png \(image id 2\): {FAULTS[how]}"):
        dataset[1]
    assert dataset[0][1]["image_id"].item() == 1


@pytest.mark.parametrize("how", FAULTS)
def test_missing_truncated_or_corrupt_image_is_skipped_with_one_warning(make, how):
    dataset = make(images=3, on_error="skip")
    spoil(dataset.image_folder / "2.png", how)
    with pytest.warns(UserWarning, match=r"skipped: \S+2\.png \(image id 2\)") as caught:
        ids = [dataset[i][1]["image_id"].item() for i in (0, 1, 2, 1)]
    assert ids == [1, 3, 3, 3]
    assert len(caught) == 1


def test_no_image_left_to_skip_to(make):
    dataset = make(images=2, on_error="skip")
    spoil(dataset.image_folder / "1.png", "missing")
    spoil(dataset.image_folder / "2.png", "missing")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ImageError, match="none of the 2 images"),
    ):
        dataset[0]


def test_unknown_policy(tmp_path):
    with pytest.raises(ValueError, match="on_error is 'ignore'; expected one of fail, skip"):
        CocoDetection(tmp_path, tmp_path, on_error="ignore")


def test_decompression_bomb_is_refused_with_its_size(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (600, 500)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299_999)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=r"bomb\.png: refused, 600x500 = 300000 pixels"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb\.png: refused as a decompression bomb.*300000"):
        read_image(path)


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grayscale.png", Image.fromarray(GREY)),
        ("grayscale_alpha.png", Image.fromarray(GREY).convert("LA")),
        ("rgba.png", Image.fromarray(GREY).convert("RGBA")),
        ("16_bit.png", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("16_bit.tif", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("palette.png", Image.fromarray(GREY).convert("P")),
        ("cmyk.tif", Image.fromarray(GREY).convert("RGB").convert("CMYK")),
    ],
)
def test_grayscale_rgba_16_bit_palette_cmyk(tmp_path, name, image):
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as file:
        assert file.mode == image.mode or name.startswith("16_bit")
    decoded = read_image(tmp_path / name, size=(3, 4))
    assert decoded.dtype == torch.uint8
    assert decoded.tolist() == torch.from_numpy(GREY).expand(3, -1, -1).tolist()


def test_1_bit_image(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    expected = torch.from_numpy((GREY > 100) * 255).expand(3, -1, -1)
    assert read_image(tmp_path / "a.png").tolist() == expected.tolist()


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(GREY).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] * 128))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = read_image(tmp_path / "a.png")
    assert decoded[0].tolist() == GREY.tolist()


def test_float_pixels_are_refused_in_one_line(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: 32-bit floating-point pixels"):
        read_image(tmp_path / "a.tif")


def exif_rotated(path):
    image = Image.fromarray(np.arange(40 * 20, dtype=np.uint16).reshape(20, 40).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: shown as 20x40
    image.save(path, exif=exif)
    return torch.from_numpy(np.array(image))


def test_exif_rotated_image_follows_the_size_in_the_json(tmp_path):
    stored = exif_rotated(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png")[0].as_subclass(torch.Tensor), stored)
    as_stored = read_image(tmp_path / "a.png", size=(20, 40))
    assert torch.equal(as_stored[0].as_subclass(torch.Tensor), stored)
    as_shown = read_image(tmp_path / "a.png", size=(40, 20))
    assert torch.equal(as_shown[0].as_subclass(torch.Tensor), stored.rot90(-1))


def test_image_of_another_size_than_the_json_says(tmp_path):
    exif_rotated(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=r"a\.png \(image id 9\): the file is 40x20 .* annotations say 21x40"
    ):
        read_image(tmp_path / "a.png", 9, (40, 21))

"""The check before training: every fault is counted and named by image and annotation."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from detr_fast.data.checks import DataError, check_annotations, check_dataset
from detr_fast.data.coco import build_coco
from detr_fast.data.label_map import LabelMap
from detr_fast.data.shapes import ShapesDataset

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
LABEL_MAP = LabelMap.contiguous(CATEGORIES)
NAN = float("nan")


def content(boxes, images=2, categories=CATEGORIES):
    """Two images of 100x80; the boxes are dealt out to them in turn, as are the categories."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 100, "height": 80}
            for i in range(1, images + 1)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 1 + n % images,
                "category_id": categories[n % len(categories)]["id"],
                "bbox": box,
            }
            for n, box in enumerate(boxes, start=1)
        ],
        "categories": copy.deepcopy(categories),
    }


def good(count=8):
    return [[5 + n, 10, 30, 20] for n in range(count)]


def check(data, **options):
    return check_annotations(data, LABEL_MAP, **options)


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def test_clean_data_has_no_findings():
    report = check(content(good()), num_queries=4)
    assert not report.findings
    assert report.usable == report.annotations == 8
    assert str(report).endswith("no faults found.")
    report.raise_for_errors(0)


@pytest.mark.parametrize(
    ("box", "name"),
    [
        ([NAN, 10, 5, 5], "boxes not finite"),
        ([10, 10, float("inf"), 5], "boxes not finite"),
        ([10, 10, 5], "boxes not finite"),
        (None, "boxes not finite"),
        ([10, 10, "5", 5], "boxes not finite"),
        ([10, 10, 0, 5], "boxes without area"),
        ([100, 10, 5, 5], "boxes off the image"),
        ([10, 200, 5, 5], "boxes off the image"),
        ([-20, 10, 20, 5], "boxes off the image"),
    ],
)
def test_annotation_off_the_image_nan_or_without_area(box, name):
    report = check(content([*good(9), box]))
    finding = only(report.errors)
    assert (finding.name, finding.count, finding.total) == (name, 1, 10)
    assert finding.examples[0].startswith("annotation 10 of image 1 (1.png): bbox ")
    assert report.usable == 9
    report.raise_for_errors(threshold=0.1)
    with pytest.raises(DataError, match=rf"(?s)1 error\(s\).*{name}.*10\.0%.*annotation 10"):
        report.raise_for_errors(threshold=0.09)


@pytest.mark.parametrize("box", [[30, 30, -10, 5], [30, 30, 10, -5]])
def test_negative_width_is_an_error_with_the_annotation_id(box):
    report = check(content([*good(9), box]))
    assert only(report.errors).name == "negative widths or heights"
    with pytest.raises(DataError, match=r"annotation 10 of image 1 \(1\.png\): bbox \[30, 30, "):
        report.raise_for_errors(threshold=1)


def test_boxes_partly_off_the_image_are_clipped_with_a_warning():
    report = check(content([*good(), [-3, 10, 20, 20], [90, 70, 10.6, 10]]))
    assert not report.errors
    finding = only(report.warnings)
    assert (finding.name, finding.count) == ("boxes partly off the image", 1)
    assert report.usable == 10


def test_normalised_boxes_are_in_the_wrong_unit():
    report = check(content([[0.1, 0.2, 0.3, 0.4]] * 6))
    assert only(report.errors).name == "boxes in the wrong unit"
    with pytest.raises(DataError, match="normalised"):
        report.raise_for_errors(threshold=1)


def test_xyxy_boxes_are_in_the_wrong_format(shared_data):
    path = shared_data / "coco_tiny" / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    label_map = LabelMap.contiguous(data["categories"])
    assert not check_annotations(data, label_map).findings
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    report = check_annotations(data, label_map)
    assert [finding.name for finding in report.errors] == ["boxes in the wrong format"]
    with pytest.raises(DataError, match="x0, y0, x1, y1"):
        report.raise_for_errors(threshold=1)


def test_unknown_category():
    data = content(good())
    data["categories"].append({"id": 95, "name": "x"})
    data["annotations"][2]["category_id"] = 95
    finding = only(check(data).errors)
    assert finding.name == "unknown categories"
    assert finding.examples == ("annotation 3 of image 2 (2.png): category_id 95 ('x')",)
    with pytest.raises(DataError, match="unknown categories"):
        check(data).raise_for_errors(threshold=1)


def test_unused_category():
    data = content(good(), categories=CATEGORIES[:1])
    data["categories"] = CATEGORIES
    finding = only(check(data).warnings)
    assert (finding.name, finding.examples) == ("unused categories", ("category_id 7 ('dog')",))


def test_categories_of_another_data_set():
    data = content(good())
    data["categories"][1]["name"] = "crack"
    data["categories"][0]["name"] = "Cat"
    finding = only(check(data).warnings)
    assert finding.name == "categories named differently"
    assert finding.examples == ("category_id 7: 'crack' here, 'dog' there",)


def test_images_without_objects():
    data = content(good())
    for annotation in data["annotations"]:
        annotation["image_id"] = 1
    data["annotations"][0].update(image_id=2, iscrowd=1)
    finding = only(check(data).warnings)
    assert (finding.name, finding.examples) == ("images without objects", ("image 2 (2.png)",))


def test_more_targets_than_queries():
    finding = only(check(content(good(9)), num_queries=4).warnings)
    assert finding.name == "more than 4 objects"
    assert finding.examples == ("image 2 (2.png): 5 objects",)


def test_annotations_of_unknown_images():
    data = content(good())
    data["annotations"][4]["image_id"] = 99
    finding = only(check(data).errors)
    assert finding.name == "unknown images"
    assert finding.examples == ("annotation 5 of image 99: bbox [9, 10, 30, 20]",)


def test_duplicate_ids():
    data = content(good())
    data["annotations"][4]["id"] = 1
    data["images"].append(data["images"][0])
    names = {f.name: f.examples for f in check(data).errors}
    assert names == {
        "repeated image ids": ("image id 1 stands 2 times",),
        "repeated annotation ids": ("annotation id 1 stands 2 times",),
    }


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (content([], images=1), "no annotations"),
        ({"images": [], "annotations": [], "categories": CATEGORIES}, "empty data set"),
        (content([[10, 10, 0, 5]] * 3), "no usable annotation"),
    ],
)
def test_no_annotations_is_an_error_before_step_1(data, name):
    report = check(data)
    assert name in [finding.name for finding in report.errors]
    with pytest.raises(DataError, match=name):
        report.raise_for_errors(threshold=1)


def test_annotations_without_area_ids_iscrowd_or_image_sizes():
    data = content(good())
    for annotation in data["annotations"]:
        del annotation["id"]
    for image in data["images"]:
        del image["width"], image["height"]
    assert not check(data).findings


def test_report_is_a_readable_table():
    text = str(check(content([*good(8), *[[10, 10, 0, 5]] * 5]), num_queries=2))
    lines = text.splitlines()
    assert lines[0].startswith("Data check of annotations: 2 images, 13 annotations (8 usable), 2")
    assert lines[1].split()[:5] == ["ERROR", "boxes", "without", "area", "5"]
    assert "38.5%" in lines[1]
    assert lines[2].strip() == "annotation 9 of image 2 (2.png): bbox [10, 10, 0, 5]"
    assert lines[5].strip() == "and 2 more"
    assert lines[6].startswith("warning more than 2 objects")


# Data sets ----------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    def write(**options):
        data = content(good(), images=4)
        (tmp_path / "train2017").mkdir(exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
        for image in data["images"]:
            Image.fromarray(noise).save(tmp_path / "train2017" / image["file_name"])
        path = tmp_path / "annotations" / "instances_train2017.json"
        path.write_text(json.dumps(data))
        return build_coco(tmp_path, "train", **options)

    return write


def test_missing_truncated_and_corrupt_images_are_listed(on_disk):
    dataset = on_disk()
    assert not check_dataset(dataset, decode=True).findings
    folder = dataset.image_folder
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:5000])
    Image.new("RGB", (100, 81)).save(folder / "4.png")
    finding = only(check_dataset(dataset).errors)
    assert (finding.name, finding.count) == ("missing images", 1)
    assert finding.examples == (f"{folder / '1.png'} (image id 1): no such file",)
    finding = only(check_dataset(dataset, decode=True).errors)
    assert (finding.name, finding.count, finding.total) == ("unreadable images", 3, 4)
    assert "2.png (image id 2): cannot be decoded, truncated" in finding.examples[1]
    assert "the file is 100x81 pixels, the annotations say 100x80" in finding.examples[2]
    with pytest.raises(DataError, match="unreadable images"):
        check_dataset(dataset, decode=True).raise_for_errors(threshold=1)


def test_missing_images_are_a_warning_where_they_are_skipped(on_disk):
    dataset = on_disk(on_error="skip")
    (dataset.image_folder / "1.png").unlink()
    report = check_dataset(dataset)
    assert not report.errors
    assert only(report.warnings).advice == "skipped in training."


def test_generated_shapes_are_clean():
    report = check_dataset(ShapesDataset(40), num_queries=25)
    assert not report.errors
    assert report.images == 40


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data_is_clean(shared_data, split):
    report = check_dataset(build_coco(shared_data / "coco_tiny", split), 100, decode=True)
    assert not report.findings
    assert report.usable == {"train": 699, "val": 804}[split]

"""Masks in the data: COCO panoptic, COCO instances, generated shapes, and transforms."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detr_fast.data.build import build_dataset
from detr_fast.data.coco import CocoDetection
from detr_fast.data.instance_masks import decode_segmentation, encode_mask, masks_to_boxes
from detr_fast.data.label_map import COCO_PANOPTIC_LABEL_MAP
from detr_fast.data.panoptic import CocoPanoptic, build_coco_panoptic, panoptic_label_map
from detr_fast.data.panoptic_png import PanopticError, write_panoptic_png
from detr_fast.data.shapes import ShapesDataset, write_shapes
from detr_fast.data.transforms import RandomSizeCrop, train_transform, val_transform
from detr_fast.evaluation.coco import CocoEvaluator


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Six generated panoptic images on disk, three for each split."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=3, val=3, stuff=True)


@pytest.fixture
def editable(stored, tmp_path):
    """A copy of the panoptic validation data, and functions to change its JSON and open it."""
    import shutil

    root = tmp_path / "data"
    shutil.copytree(stored, root)
    path = root / "annotations" / "panoptic_val2017.json"

    class Editable:
        maps = root / "panoptic_val2017"

        def change(self, edit):
            content = json.loads(path.read_text())
            edit(content)
            path.write_text(json.dumps(content))

        def open(self):
            return build_coco_panoptic(root, "val")

    return Editable()


# COCO panoptic


def test_stored_shapes_are_the_generated_ones(stored):
    generated = ShapesDataset(3, seed=1, stuff=True)
    dataset = build_coco_panoptic(stored, "val")
    assert len(dataset) == 3
    assert dataset.label_map == generated.label_map
    assert dataset.panoptic_ground_truth() == generated.panoptic_ground_truth()
    for index in range(3):
        (image, target), (expected_image, expected) = dataset[index], generated[index]
        assert torch.equal(image, expected_image)
        assert target.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(target[name], value), name
            assert target[name].dtype == value.dtype, name
        assert np.array_equal(dataset.read_ids(index), generated.read_ids(index))


def test_things_are_the_instances(stored):
    dataset = build_coco_panoptic(stored, "val")
    expected = ShapesDataset(3, seed=1, stuff=True).ground_truth(masks=True)
    assert dataset.ground_truth()["annotations"] == expected["annotations"]
    dataset.instance_file = None
    derived = dataset.ground_truth(masks=True)["annotations"]
    assert derived == expected["annotations"]
    boxes = dataset.ground_truth()["annotations"]
    assert [a["bbox"] for a in boxes] == [a["bbox"] for a in derived]
    assert "segmentation" not in boxes[0]


def test_order_of_images_and_annotations_does_not_matter(editable):
    before = editable.open()
    editable.change(lambda content: content["annotations"].reverse())
    after = editable.open()
    for index in range(3):
        assert torch.equal(before[index][1]["masks"], after[index][1]["masks"])


def test_missing_png_is_named(editable):
    name = "000000000001.png"
    (editable.maps / name).unlink()
    dataset = editable.open()
    dataset[0]
    with pytest.raises(PanopticError, match=rf"{name}: there is no such panoptic PNG"):
        dataset[1]


def test_unknown_category_is_named(stored):
    dataset = build_coco_panoptic(stored, "val")
    known = panoptic_label_map([c for c in dataset.label_map.categories if c["id"] < 8])
    with pytest.raises(
        PanopticError, match=r"segment \d+ of image \d+ \(0+\d\.png\): category_id [89]"
    ):
        build_coco_panoptic(stored, "val", label_map=known)


def test_segment_without_pixels_is_left_out(editable):
    before = editable.open()[0][1]

    def add(content):
        segments = content["annotations"][0]["segments_info"]
        segments.insert(0, {"id": 77, "category_id": 3, "iscrowd": 0})

    editable.change(add)
    after = editable.open()[0][1]
    for name in ("boxes", "labels", "masks", "area", "iscrowd"):
        assert torch.equal(before[name], after[name])


def test_image_without_segments_is_background(editable):
    editable.change(lambda content: content["annotations"][0].update(segments_info=[]))
    write_panoptic_png(editable.maps / "000000000000.png", np.zeros((64, 64)))
    image, target = editable.open()[0]
    assert image.shape == (3, 64, 64)
    assert target["masks"].shape == (0, 64, 64)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64


def test_image_without_annotation_is_named(editable):
    editable.change(lambda content: content["annotations"].pop(1))
    with pytest.raises(PanopticError, match=r"image 1 \(000000000001\.png\) has no annotation"):
        editable.open()


def test_map_with_alpha_is_refused(editable):
    path = editable.maps / "000000000000.png"
    Image.open(path).convert("RGBA").save(path)
    with pytest.raises(PanopticError, match="has mode RGBA"):
        editable.open()[0]


def test_smoothed_map_is_refused(editable):
    path = editable.maps / "000000000000.png"
    small = Image.open(path).resize((40, 40), Image.Resampling.BILINEAR)
    small.resize((64, 64), Image.Resampling.BILINEAR).save(path)
    with pytest.raises(PanopticError, match="resized with smoothing"):
        editable.open()[0]


def test_crowds_keep_their_flag(editable):
    def mark(content):
        content["annotations"][0]["segments_info"][0]["iscrowd"] = 1

    editable.change(mark)
    assert editable.open()[0][1]["iscrowd"].tolist()[0] == 1


def test_instances_are_no_panoptic_annotations(stored):
    with pytest.raises(ValueError, match=r"annotations\[0\] has no 'file_name'.*not panoptic"):
        CocoPanoptic(
            stored / "val2017",
            stored / "panoptic_val2017",
            stored / "annotations" / "instances_val2017.json",
        )


def test_missing_folder_says_what_was_looked_for(stored, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"panoptic PNGs not found.*panoptic_val2017"):
        build_coco_panoptic(stored, "val", coco_panoptic_path=tmp_path)


def test_cocos_own_categories_take_its_layout():
    assert panoptic_label_map(COCO_PANOPTIC_LABEL_MAP.categories) is COCO_PANOPTIC_LABEL_MAP
    few = panoptic_label_map(COCO_PANOPTIC_LABEL_MAP.categories[:5])
    assert len(few) == 5


# Masks of instances


def test_polygons_and_run_lengths_are_the_same_masks():
    polygon = [2.0, 1.0, 9.0, 1.0, 9.0, 6.0, 2.0, 6.0]
    mask = decode_segmentation([polygon], 8, 12)
    assert mask.sum() == 35
    assert mask[1:6, 2:9].all()
    compressed = encode_mask(mask)
    assert isinstance(compressed["counts"], str)
    columns = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate(([0], columns)))).tolist()
    counts = np.diff([0, *changes, columns.size]).tolist()
    for segmentation in (compressed, {"size": [8, 12], "counts": counts}):
        assert np.array_equal(decode_segmentation(segmentation, 8, 12), mask)
    two = decode_segmentation([polygon, [10, 0, 12, 0, 12, 8, 10, 8]], 8, 12)
    assert two.sum() == 35 + 16
    assert decode_segmentation([[1, 2, 3, 4]], 8, 12).sum() == 0


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"size \[4, 4\] belongs to an image of \[8, 12\]"):
        decode_segmentation({"size": [4, 4], "counts": [16]}, 8, 12)


def test_coco_masks_lie_in_their_boxes(shared_data):
    root = shared_data / "coco_tiny"
    dataset = build_dataset(
        "coco", "val", coco_path=root, masks=True, transform=lambda i, t: (i, t)
    )
    plain = build_dataset("coco", "val", coco_path=root, transform=lambda i, t: (i, t))
    assert "masks" not in plain[0][1]
    for index in range(12):
        image, target = dataset[index]
        masks = target["masks"]
        assert masks.shape == (len(target["labels"]), *image.shape[-2:])
        assert torch.equal(target["boxes"], plain[index][1]["boxes"])
        visible = masks.flatten(1).any(1)
        assert visible.all()
        assert (masks_to_boxes(masks) - target["boxes"]).abs().max() <= 1.5


def test_objects_without_a_mask_are_refused(stored, tmp_path):
    content = json.loads((stored / "annotations" / "instances_val2017.json").read_text())
    del content["annotations"][1]["segmentation"]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    CocoDetection(stored / "val2017", path)
    with pytest.raises(ValueError, match="annotation 2 of image 0 has no segmentation"):
        CocoDetection(stored / "val2017", path, masks=True)


# Shapes


def test_shapes_with_stuff_have_the_same_objects():
    plain, panoptic = ShapesDataset(8), ShapesDataset(8, stuff=True)
    for index in range(8):
        objects, scene = plain.scene(index).objects, panoptic.scene(index)
        assert [o.label for o in objects] == [o.label for o in scene.objects]
        assert all(
            np.array_equal(a.mask, b.mask) for a, b in zip(objects, scene.objects, strict=True)
        )
        covered = np.sum([s.mask for s in [*scene.objects, *scene.stuff]], axis=0)
        assert (covered == 1).all()
        assert all(panoptic.label_map.is_thing(o.label) for o in scene.objects)
        assert not any(panoptic.label_map.is_thing(s.label) for s in scene.stuff)
    assert "masks" not in plain[0][1]


def test_masks_of_shapes_fill_their_boxes():
    _, target = ShapesDataset(1, masks=True)[0]
    assert torch.equal(masks_to_boxes(target["masks"]), target["boxes"])
    assert torch.equal(target["masks"].flatten(1).sum(1).float(), target["area"])


# Transforms


def painted(height=90, width=120):
    """An image whose red channel is the number of the object, and its target."""
    ids = np.zeros((height, width), dtype=np.uint8)
    for number, (top, left, size) in enumerate([(5, 8, 30), (40, 60, 40), (60, 5, 20)], start=1):
        ids[top : top + size, left : left + size] = number * 60
    masks = torch.from_numpy(ids == np.array([60, 120, 180])[:, None, None]).byte()
    image = tv_tensors.Image(torch.from_numpy(ids)[None].expand(3, -1, -1).contiguous())
    boxes = tv_tensors.BoundingBoxes(
        masks_to_boxes(masks), format="XYXY", canvas_size=(height, width)
    )
    return image, {
        "boxes": boxes,
        "labels": torch.tensor([1, 2, 3]),
        "masks": tv_tensors.Mask(masks),
        "area": masks.flatten(1).sum(1).float(),
        "iscrowd": torch.zeros(3, dtype=torch.int64),
    }


@pytest.mark.parametrize("seed", range(12))
def test_masks_boxes_and_labels_stay_together(seed):
    torch.manual_seed(seed)
    image, target = painted()
    transform = train_transform(scales=(64, 96), max_size=200, crop=(30, 70), crop_scales=(80, 100))
    image, target = transform(image, target)
    masks = target["masks"]
    assert masks.dtype == torch.bool
    assert type(masks) is torch.Tensor
    assert masks.shape == (len(target["labels"]), *image.shape[-2:])
    assert len(target["boxes"]) == len(target["area"]) == len(target["iscrowd"]) == len(masks)
    height, width = image.shape[-2:]
    red = image[0] * 0.229 + 0.485
    for mask, label, box in zip(masks, target["labels"], target["boxes"], strict=True):
        # Within its mask, off the rim, an object has its own colour.
        inner = -torch.nn.functional.max_pool2d(-mask[None].float(), 7, 1, 3)[0] > 0
        if inner.any():
            assert (red[inner] - int(label) * 60 / 255).abs().max() < 0.02
        x0, y0, x1, y1 = masks_to_boxes(mask[None])[0]
        cx, cy, w, h = box * torch.tensor([width, height, width, height])
        tight = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        assert (tight - torch.stack([cx, cy, w, h])).abs().max() <= 3


def test_object_whose_mask_is_cropped_away_is_dropped():
    image, target = painted(40, 40)
    target["masks"] = tv_tensors.Mask(torch.zeros(3, 40, 40, dtype=torch.uint8))
    target["masks"][1, 20:24, 20:24] = 1
    target["boxes"] = tv_tensors.BoundingBoxes(
        torch.tensor([[0.0, 0, 40, 40]] * 3), format="XYXY", canvas_size=(40, 40)
    )
    _, cropped = RandomSizeCrop(40, 40)(image, target)
    assert cropped["labels"].tolist() == [2]
    assert cropped["masks"].shape == (1, 40, 40)


def test_validation_resizes_masks_by_nearest_interpolation():
    image, target = painted(30, 40)
    _, resized = val_transform(15)(image, target)
    assert resized["masks"].shape == (3, 15, 20)
    assert torch.equal(
        resized["masks"], target["masks"][:, ::2, ::2].bool().as_subclass(torch.Tensor)
    )


# Mask AP


def test_true_masks_have_an_average_precision_of_one_and_shifted_ones_less():
    dataset = ShapesDataset(4, masks=True)
    truth = dataset.ground_truth(masks=True)
    figures = {}
    for shift in (0, 5):
        evaluator = CocoEvaluator(truth, dataset.label_map, "segm")
        for index in range(4):
            _, target = dataset[index]
            masks = torch.roll(target["masks"].as_subclass(torch.Tensor), shift, 2).bool()
            evaluator.update(
                {
                    index: {
                        "scores": torch.linspace(0.9, 0.5, len(masks)),
                        "labels": target["labels"],
                        "boxes": target["boxes"],
                        "masks": masks,
                    }
                }
            )
        figures[shift] = evaluator.summarize()
    assert figures[0]["AP"] == pytest.approx(1.0)
    assert 0 < figures[5]["AP"] < 0.7
    assert figures[0]["coco_eval_masks"][0] == figures[0]["AP"]
    assert all(row["name"] for row in figures[0]["per_class"])


def test_mask_ap_needs_segmentations():
    dataset = ShapesDataset(1)
    with pytest.raises(ValueError, match="annotation 1 of image 0 has no segmentation"):
        CocoEvaluator(dataset.ground_truth(), dataset.label_map, "segm")

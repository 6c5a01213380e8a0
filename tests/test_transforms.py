"""Augmentation and validation transforms: sizes, boxes, and images of every kind."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detr_fast.data.coco import build_coco
from detr_fast.data.images import ImageError, to_rgb
from detr_fast.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from detr_fast.data.transforms import (
    RandomShortSide,
    RandomSizeCrop,
    resized_size,
    train_transform,
    val_transform,
)


def sample(height, width, boxes, fill=128):
    """An image and its target, as the data sets give them."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    extent = boxes[:, 2:] - boxes[:, :2]
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)),
        "image_id": torch.tensor([7]),
        "area": extent.prod(1),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        "orig_size": torch.tensor([height, width]),
        "size": torch.tensor([height, width]),
    }
    return tv_tensors.Image(torch.full((3, height, width), fill, dtype=torch.uint8)), target


def denormalised(image):
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return image * std + mean


def exact_size(height, width, size, max_size):
    """The rule in rational arithmetic: shorten the short side, then floor the long one."""
    short, long = sorted((height, width))
    if Fraction(long, short) * size > max_size:
        size = round(Fraction(max_size * short, long))
    long = size * long // short
    return (long, size) if height > width else (size, long)


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1066)),
        (640, 480, (1066, 800)),
        (427, 640, (800, 1199)),
        (640, 427, (1199, 800)),
        (375, 500, (800, 1066)),
        (612, 612, (800, 800)),
        (230, 352, (800, 1224)),
        (320, 640, (666, 1332)),  # 1333 / 2 = 666.5 is rounded to even
        (304, 640, (633, 1332)),
        (800, 1000, (800, 1000)),
        (1, 1, (800, 800)),
        (10, 30000, (1, 1333)),
    ],
)
def test_size_at_800_1333(height, width, expected):
    assert resized_size(height, width, 800, 1333) == expected


def test_size_of_real_images_is_that_of_the_rule_in_exact_arithmetic(shared_data):
    sizes = json.loads((shared_data / "val2017_sizes.json").read_text())
    entries = sizes["first"] + sizes["more"]
    assert len(entries) == 188
    for name, height, width in entries:
        for size in (800, 480, 512, 640, 768, 400):
            got = resized_size(height, width, size, 1333)
            assert got == exact_size(height, width, size, 1333), name


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.integers(800, 2000))
def test_size_in_exact_arithmetic(height, width, size, max_size):
    if round(Fraction(max_size * min(height, width), max(height, width))) == 0:
        return
    assert resized_size(height, width, size, max_size) == exact_size(height, width, size, max_size)


def test_size_without_a_limit():
    assert resized_size(100, 1000, 400) == (400, 4000)


# Validation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("short_side", "max_size", "every"), [(800, 1333, 8), (200, 333, 1)])
def test_validation_of_real_images_inverts_to_their_annotations(
    shared_data, short_side, max_size, every
):
    root = shared_data / "coco_tiny"
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        dataset = build_coco(root, split, val_transform(short_side, max_size))
        assert len(dataset) == len(content["images"]) == 80
        for i in range(0, 80, every):
            entry, (image, target) = content["images"][i], dataset[i]
            height, width = entry["height"], entry["width"]
            assert target["image_id"].tolist() == [entry["id"]]
            assert target["orig_size"].tolist() == [height, width]
            assert target["size"].tolist() == list(image.shape[1:])
            assert target["size"].tolist() == list(exact_size(height, width, short_side, max_size))
            annotations = [
                a
                for a in content["annotations"]
                if a["image_id"] == entry["id"] and not a["iscrowd"]
            ]
            expected = torch.tensor([a["bbox"] for a in annotations]).reshape(-1, 4)
            cx, cy, w, h = target["boxes"].double().unbind(1)
            back = torch.stack(((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height))
            # float32 on coordinates up to 640 resolves 6e-5 pixels.
            torch.testing.assert_close(back.T, expected.double(), rtol=0, atol=1e-3)
            assert target["labels"].tolist() == [a["category_id"] for a in annotations]
            enlargement = image.shape[1] * image.shape[2] / (height * width)
            areas = torch.tensor([a["area"] for a in annotations]) * enlargement
            torch.testing.assert_close(target["area"], areas, rtol=1e-5, atol=0)


def test_validation_resizes_like_pillow(shared_data):
    path = sorted((shared_data / "coco_tiny" / "val2017").iterdir())[0]
    with Image.open(path) as file:
        image = file.convert("RGB")
    height, width = resized_size(image.height, image.width, 800, 1333)
    expected = F.pil_to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))
    got = (denormalised(val_transform()(image)) * 255).round()
    # Two levels are what both fixed-point implementations were seen to differ by.
    assert (got - expected).abs().max() <= 2
    assert ((got - expected).abs() > 0).float().mean() < 0.01


def test_validation_is_plain_normalised_and_deterministic():
    image, target = sample(60, 80, [[8, 6, 40, 30]])
    before = torch.get_rng_state()
    first, second = val_transform(30, 100)(image, target), val_transform(30, 100)(image, target)
    assert torch.equal(before, torch.get_rng_state())
    assert type(first[0]) is type(first[1]["boxes"]) is torch.Tensor
    assert first[0].dtype == first[1]["boxes"].dtype == torch.float32
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1]["boxes"], torch.tensor([[0.3, 0.3, 0.4, 0.4]]))
    torch.testing.assert_close(denormalised(first[0]), torch.full((3, 30, 40), 128 / 255))
    assert target["size"].tolist() == [60, 80]  # the input is left as it was


def test_image_alone():
    image, target = sample(60, 80, [])
    alone = val_transform(30, 100)(image)
    assert torch.equal(alone, val_transform(30, 100)(image, target)[0])
    assert train_transform((30,), 100, crop=(10, 20), crop_scales=(25,))(image).ndim == 3


@pytest.mark.parametrize("short_side", [30, None])
def test_images_that_are_normalised_elsewhere(short_side):
    image, target = sample(61, 83, [[8, 6, 40, 30]])
    image = tv_tensors.Image(torch.randint_like(image, 256))
    expected, boxes = val_transform(short_side, 100)(image, target)
    plain, found = val_transform(short_side, 100, normalised=False)(image, target)
    assert (type(plain), plain.dtype) == (torch.Tensor, torch.uint8)
    assert torch.equal(val_transform(None)(plain), expected)
    assert boxes.keys() == found.keys()
    assert all(torch.equal(boxes[name], found[name]) for name in boxes)
    values = val_transform(short_side, 100, normalised=False)(F.to_dtype(image, scale=True))
    assert values.dtype == torch.float32


def test_native_resolution():
    image, target = sample(61, 83, [[0, 0, 83, 61]])
    transformed, moved = val_transform(None)(image, target)
    assert transformed.shape == (3, 61, 83)
    assert moved["boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0]]


# Augmentation -------------------------------------------------------------------------------------


def coordinates(height, width, boxes):
    """An image whose pixels hold their own position: red is x / width, green is y / height."""
    _, target = sample(height, width, boxes)
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    image = torch.stack(
        (x.expand(height, -1), y[:, None].expand(-1, width), torch.zeros(()).expand(height, width))
    )
    return tv_tensors.Image(image), target


def axis_to_original(values, length):
    """Slope and intercept of the map from transformed to original pixels, off the borders."""
    low, high = len(values) // 4, 3 * len(values) // 4
    slope = float(values[high] - values[low]) * length / (high - low)
    return slope, float(values[low]) * length - slope * (low + 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_boxes_labels_and_areas_stay_with_their_pixels(seed, crop):
    original = torch.tensor([[10.0, 12, 50, 40], [70, 20, 110, 90], [20, 60, 60, 95]])
    image, target = coordinates(100, 120, original.tolist())
    # Enlarging only: there bilinear interpolation leaves a linear image linear.
    transform = train_transform(
        (110, 130, 150), max_size=170, crop=(40, 80) if crop else None, crop_scales=(100, 120)
    )
    torch.manual_seed(seed)
    image, target = transform(image, target)
    height, width = image.shape[1:]
    assert target["size"].tolist() == [height, width]
    assert target["orig_size"].tolist() == [100, 120]
    assert len(target["boxes"]) == len(target["area"]) == len(target["iscrowd"])
    pixels = denormalised(image)
    scale_x, start_x = axis_to_original(pixels[0, height // 2], 120)
    scale_y, start_y = axis_to_original(pixels[1, :, width // 2], 100)
    assert scale_y > 0
    window_x = sorted((start_x, start_x + scale_x * width))
    window_y = sorted((start_y, start_y + scale_y * height))
    expected = original.clone()
    expected[:, 0::2].clamp_(*window_x)
    expected[:, 1::2].clamp_(*window_y)
    visible = ((expected[:, 2:] - expected[:, :2]) > 0.05).all(1)
    boxes = torch.zeros(3, 4)
    for label, (cx, cy, w, h) in zip(target["labels"], target["boxes"], strict=True):
        x = torch.stack((cx - w / 2, cx + w / 2)) * width * scale_x + start_x
        y = torch.stack((cy - h / 2, cy + h / 2)) * height * scale_y + start_y
        boxes[label] = torch.stack((x.min(), y.min(), x.max(), y.max()))
    torch.testing.assert_close(boxes[visible], expected[visible], rtol=0, atol=2e-3)
    assert set(torch.where(visible)[0].tolist()) <= set(target["labels"].tolist())
    _, _, w, h = target["boxes"].unbind(1)
    torch.testing.assert_close(target["area"], w * width * h * height, rtol=1e-4, atol=0.1)


def test_flip_mirrors_boxes():
    image, target = sample(50, 100, [[10, 5, 30, 25]])
    image[..., 10:30] = 255
    flipped, moved = train_transform(scales=None, flip=1.0)(image, target)
    torch.testing.assert_close(moved["boxes"], torch.tensor([[0.8, 0.3, 0.2, 0.4]]))
    assert (denormalised(flipped)[:, :, 70:90] > 0.99).all()


def test_original_sizes_occur_and_no_others():
    image = tv_tensors.Image(torch.zeros(1, 48, 48, dtype=torch.uint8))
    transform = RandomShortSide(range(480, 801, 32), 1333)
    shorts = {min(transform(image).shape[1:]) for _ in range(120)}
    assert shorts == set(range(480, 801, 32))


def test_crop_sides_are_drawn_from_384_to_600():
    image, target = sample(500, 667, [])
    sides = torch.tensor([RandomSizeCrop(384, 600)(image, target)[0].shape[1:] for _ in range(200)])
    assert sides.min() >= 384
    assert sides[:, 0].max() <= 500
    assert sides[:, 1].max() <= 600
    assert sides[:, 1].max() > 500


def test_crop_drops_boxes_without_area_and_measures_the_rest():
    image, target = sample(100, 100, [[0, 0, 10, 10], [90, 90, 100, 100], [0, 0, 100, 100]])
    for _ in range(20):
        cropped, moved = RandomSizeCrop(30, 30)(image, target)
        assert cropped.shape == (3, 30, 30)
        extent = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
        assert (extent > 0).all()
        torch.testing.assert_close(moved["area"], extent.prod(1).as_subclass(torch.Tensor))
        assert 2 in moved["labels"]
        assert len(moved["labels"]) == len(moved["boxes"]) == len(moved["iscrowd"]) < 3
        assert moved["boxes"].canvas_size == (30, 30)


def test_crop_keeps_sides_that_the_image_does_not_reach():
    image, target = sample(20, 500, [])
    cropped, _ = RandomSizeCrop(384, 600)(image, target)
    assert cropped.shape[1] == 20
    assert 384 <= cropped.shape[2] <= 500


def test_image_without_objects():
    transformed, target = train_transform()(*sample(100, 120, []))
    assert target["boxes"].shape == (0, 4)
    assert target["area"].shape == target["labels"].shape == (0,)
    assert transformed.ndim == 3


@pytest.mark.parametrize("crop", [None, (384, 600)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (10, 30000), (30000, 10), (3, 2)])
def test_extreme_aspect_1x1_30000x10(height, width, crop):
    for _ in range(4):
        transform = train_transform(crop=crop)
        transformed, target = transform(*sample(height, width, [[0, 0, width, height]]))
        assert transformed.numel() < 3 * 1400 * 1400
        assert torch.isfinite(transformed).all()
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all()


def test_random_numbers_come_from_torch_alone():
    image, target = coordinates(100, 120, [[10, 12, 50, 40]])
    transform = train_transform((90, 110), 150, crop=(40, 80), crop_scales=(80, 100))
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(torch.cat([transform(image, target)[0].flatten() for _ in range(5)]))
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: train_transform(scales=()),
        lambda: val_transform(0),
        lambda: val_transform(800, 0),
        lambda: train_transform(crop=(600, 384)),
    ],
)
def test_impossible_sizes(make):
    with pytest.raises(ValueError, match="expected"):
        make()


# Images in memory ---------------------------------------------------------------------------------


def gradient():
    return torch.arange(6 * 8, dtype=torch.uint8).reshape(6, 8) * 5


@pytest.mark.parametrize(
    "make",
    [
        lambda g: g,
        lambda g: g[None],
        lambda g: torch.stack([g, torch.zeros_like(g)]),
        lambda g: torch.stack([g, g, g]),
        lambda g: torch.stack([g, g, g, torch.zeros_like(g)]),
        lambda g: g.to(torch.int32).mul(257).to(torch.uint16),
        lambda g: g.numpy(),
        lambda g: g[..., None].numpy(),
        lambda g: np.stack([g.numpy()] * 3, -1),
        lambda g: np.stack([g.numpy()] * 4, -1),
        lambda g: g.numpy().astype(np.uint16) * 257,
        lambda g: Image.fromarray(g.numpy()),
        lambda g: Image.fromarray(g.numpy()).convert("RGBA"),
        lambda g: Image.fromarray(g.numpy()).convert("LA"),
        lambda g: Image.fromarray(g.numpy().astype(np.uint16) * 257),
        lambda g: Image.fromarray(g.numpy().astype(np.int32) * 257),
    ],
)
def test_8_and_16_bit_tensors_arrays_and_pil_images(make):
    image = to_rgb(make(gradient()))
    assert image.dtype == torch.uint8
    assert torch.equal(image.as_subclass(torch.Tensor), gradient().expand(3, -1, -1))


def test_floats_in_0_1():
    values = gradient().float() / 255
    eight_bits = val_transform(None)(gradient())
    torch.testing.assert_close(val_transform(None)(values), eight_bits, rtol=0, atol=1e-6)
    half = to_rgb(values.half())
    assert half.dtype == torch.float32
    assert torch.equal(values, gradient().float() / 255)  # the input is left as it was


def test_bool_image():
    assert to_rgb(gradient() > 100).unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 4, 4), 255.0), r"values from 255 to 255; expected \[0, 1\]"),
        (torch.full((3, 4, 4), torch.nan), r"expected \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "dtype torch.int64; expected uint8"),
        (torch.zeros(6, 4, 3, dtype=torch.uint8), r"shape \(6, 4, 3\) is none: expected a tensor"),
        (torch.zeros(1, 3, 4, 4), r"shape \(1, 3, 4, 4\) is none"),
        (torch.zeros(3, 0, 4), r"shape \(3, 0, 4\) is none"),
        ("cat.jpg", "an image is a str; expected a PIL image, an array or a tensor"),
    ],
)
def test_images_that_are_none(image, message):
    with pytest.raises(ImageError, match=message):
        to_rgb(image)

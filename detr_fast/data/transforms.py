"""DETR's augmentation and validation transforms, on torchvision's transforms v2.

A transform is called with `(image, target)` or with an image alone. It takes what the data sets
give: an image of any kind that `images.to_rgb` accepts, and a target whose `boxes` are
`tv_tensors.BoundingBoxes` in pixel xyxy and whose `masks`, if any, are `tv_tensors.Mask`. It
returns a float32 image (3, H, W), normalised by ImageNet's mean and standard deviation, and a
target of plain tensors whose boxes are cxcywh relative to the transformed image, whose `area` is in
pixels of it, whose `masks` are bool (n, H, W), resized by nearest interpolation, and whose `size`
is its (height, width).

Source: Carion et al. 2020, appendix A.4, for the sizes and probabilities. Images are resized as
8-bit tensors, bilinear with antialiasing: against Pillow's own resizing 0.1 % of the values
differ, by one or two levels of 255.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .images import to_rgb
from .normalization import IMAGENET_MEAN, IMAGENET_STD

TRAIN_SCALES = tuple(range(480, 801, 32))
MAX_SIZE = 1333
CROP_SCALES = (400, 500, 600)
CROP_RANGE = (384, 600)
# The original resizes without limit before it crops. This one is out of reach of any image less
# elongated than 32:1, and keeps a strip of 30000x10 pixels from growing to gigabytes.
_BEFORE_CROP_MAX_SIZE = 32 * max(CROP_SCALES)


def train_transform(
    scales: Sequence[int] | None = TRAIN_SCALES,
    max_size: int | None = MAX_SIZE,
    crop: tuple[int, int] | None = CROP_RANGE,
    crop_scales: Sequence[int] = CROP_SCALES,
    flip: float = 0.5,
) -> v2.Compose:
    """DETR's training augmentation.

    A horizontal flip; then, with equal chance, a resize to one of `scales`, or a resize to one of
    `crop_scales`, a random crop and a resize to one of `scales`. Boxes that a crop leaves without
    area are dropped. Random numbers come from torch's CPU generator.

    Args:
        scales: short sides in pixels to choose from; None keeps the native resolution, uncropped.
        max_size: longest side after resizing, in pixels; None sets no limit.
        crop: smallest and largest side of the crop, in pixels; None crops never.
        crop_scales: short sides before cropping.
        flip: probability of the flip.

    Raises:
        ValueError: an empty choice or a size below 1.
    """
    steps: list[nn.Module] = [ToRGB(), v2.RandomHorizontalFlip(flip)]
    if scales is not None:
        resize = RandomShortSide(scales, max_size)
        if crop is None:
            steps.append(resize)
        else:
            before = RandomShortSide(crop_scales, _BEFORE_CROP_MAX_SIZE)
            cropped = v2.Compose([before, RandomSizeCrop(*crop), resize])
            steps.append(v2.RandomChoice([resize, cropped]))
    return v2.Compose([*steps, *_normalisation()])


def val_transform(
    short_side: int | None = 800, max_size: int | None = MAX_SIZE, *, normalised: bool = True
) -> v2.Compose:
    """DETR's transform for validation and inference: one resize, nothing random.

    Args:
        short_side: in pixels; None keeps the native resolution.
        max_size: longest side in pixels, to which `short_side` yields; None sets no limit.
        normalised: False leaves images as they are resized, uint8, or float32 in [0, 1] for
            floating-point input, in any memory format, for a `Normalization` of whole batches.

    Raises:
        ValueError: a size below 1.
    """
    resize = [] if short_side is None else [RandomShortSide((short_side,), max_size)]
    last = _normalisation() if normalised else [ToModelInput()]
    return v2.Compose([ToRGB(), *resize, *last])


def resized_size(
    height: int, width: int, short_side: int, max_size: int | None = None
) -> tuple[int, int]:
    """Size after bringing the short side to `short_side`, rounded as the original rounds.

    The limit is applied by shortening the short side to a whole number of pixels first, so the
    long side may end a few pixels above or below `max_size`. Where that number would be 0, the
    result is one pixel by `max_size`.

    Returns:
        (height, width) in pixels.
    """
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * short_side > max_size:
        short_side = round(max_size * short / long)
        if short_side == 0:
            return (1, max_size) if height < width else (max_size, 1)
    if short == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


class _PairTransform(nn.Module, ABC):
    """A step on `(image, target)`; the target is an empty dict where there is none."""

    def forward(self, image, target: dict | None = None):
        image, transformed = self.apply_to(image, {} if target is None else target)
        return image if target is None else (image, transformed)

    @abstractmethod
    def apply_to(self, image, target: dict) -> tuple[Tensor, dict]:
        """The transformed image and target; the inputs stay as they are."""


class ToRGB(_PairTransform):
    """Any image in memory to RGB; see `images.to_rgb`."""

    def apply_to(self, image, target: dict) -> tuple[Tensor, dict]:
        return to_rgb(image), target


class RandomShortSide(_PairTransform):
    """Resizes so that the short side is one of `sizes`, drawn uniformly; see `resized_size`.

    Raises:
        ValueError: an empty choice or a size below 1.
    """

    def __init__(self, sizes: Sequence[int], max_size: int | None = None):
        super().__init__()
        if len(sizes) == 0 or min(sizes) < 1:
            raise ValueError(f"sizes to resize to are {tuple(sizes)}; expected at least one, >= 1.")
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size is {max_size}; expected at least 1, or None.")
        self.sizes = tuple(sizes)
        self.max_size = max_size

    def apply_to(self, image, target: dict) -> tuple[Tensor, dict]:
        chosen = self.sizes[_random_index(len(self.sizes))]
        height, width = F.get_size(image)
        size = resized_size(height, width, chosen, self.max_size)
        if size == (height, width):
            return image, target
        image = F.resize(image, list(size), antialias=True)
        if "boxes" in target:
            enlargement = (size[0] / height) * (size[1] / width)
            target = {
                **target,
                "boxes": F.resize(target["boxes"], list(size)),
                "area": target["area"] * enlargement,
            }
        if "masks" in target:
            target = {**target, "masks": F.resize(target["masks"], list(size))}
        return image, target


class RandomSizeCrop(_PairTransform):
    """Crops a window whose sides are drawn from [smallest, largest], apart from each other.

    A side that the image does not reach is kept whole. Boxes are clipped to the window, `area`
    becomes that of the clipped box, and objects without area are dropped, as are those whose mask
    has no pixel left.

    Raises:
        ValueError: not 1 <= smallest <= largest.
    """

    def __init__(self, smallest: int, largest: int):
        super().__init__()
        if not 1 <= smallest <= largest:
            raise ValueError(f"crop is ({smallest}, {largest}); expected 1 <= smallest <= largest.")
        self.smallest = smallest
        self.largest = largest

    def apply_to(self, image, target: dict) -> tuple[Tensor, dict]:
        height, width = F.get_size(image)
        crop_width, crop_height = self._side(width), self._side(height)
        top = _random_index(height - crop_height + 1)
        left = _random_index(width - crop_width + 1)
        window = (top, left, crop_height, crop_width)
        image = F.crop(image, *window)
        if "boxes" in target:
            boxes = F.crop(target["boxes"], *window)
            extent = boxes.as_subclass(Tensor)[:, 2:] - boxes.as_subclass(Tensor)[:, :2]
            keep = (extent > 0).all(1)
            if "masks" in target:
                masks = F.crop(target["masks"], *window)
                keep &= masks.as_subclass(Tensor).bool().flatten(1).any(1)
                target = {**target, "masks": tv_tensors.wrap(masks[keep], like=masks)}
            target = {
                **target,
                "boxes": tv_tensors.wrap(boxes[keep], like=boxes),
                "area": extent.prod(1)[keep],
                "labels": target["labels"][keep],
                "iscrowd": target["iscrowd"][keep],
            }
        return image, target

    def _side(self, available: int) -> int:
        smallest, largest = min(self.smallest, available), min(self.largest, available)
        return smallest + _random_index(largest - smallest + 1)


class ToPlanes(_PairTransform):
    """Brings an image, which resizing leaves channels-last, to the order (3, H, W) in memory.

    Normalising walks that faster, and 8-bit values are the cheapest to reorder.
    """

    def apply_to(self, image, target: dict) -> tuple[Tensor, dict]:
        return tv_tensors.wrap(image.contiguous(), like=image), target


class ToModelInput(_PairTransform):
    """Plain tensors: boxes to cxcywh relative to the image, `size` from the image."""

    def apply_to(self, image, target: dict) -> tuple[Tensor, dict]:
        height, width = F.get_size(image)
        target = {**target, "size": torch.tensor([height, width])}
        if "boxes" in target:
            x0, y0, x1, y1 = target["boxes"].as_subclass(Tensor).unbind(1)
            boxes = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), 1)
            target["boxes"] = boxes / torch.tensor([width, height, width, height])
        if "masks" in target:
            target["masks"] = target["masks"].as_subclass(Tensor).bool()
        return image.as_subclass(Tensor), target


def _normalisation() -> list[nn.Module]:
    return [
        ToPlanes(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD, inplace=True),
        ToModelInput(),
    ]


def _random_index(count: int) -> int:
    # A single choice draws nothing: validation must not move the generator of training.
    return int(torch.randint(count, ())) if count > 1 else 0

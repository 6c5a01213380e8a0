"""Batches normalised on their device: the values of the transforms, and zeros in the padding."""

import pytest
import torch

from detr_fast.data.normalization import Normalization
from detr_fast.data.transforms import val_transform

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def pictures() -> list[torch.Tensor]:
    """Every level of every channel, and another size."""
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(3, -1, -1)
    return [levels, levels[:, 3:12, :7].flip(0)]


def padded(images: list[torch.Tensor], fill: float) -> torch.Tensor:
    canvas = torch.full((len(images), 3, 20, 17), fill).to(images[0].dtype)
    for own, image in zip(canvas, images, strict=True):
        own[:, : image.shape[1], : image.shape[2]] = image
    return canvas


@pytest.mark.parametrize("eight_bits", [True, False], ids=["8 bits", "floats"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_is_what_its_images_are_one_by_one(dtype, layout, eight_bits):
    images = pictures() if eight_bits else [image / 255 for image in pictures()]
    expected = padded([val_transform(None)(image) for image in images], 0.0).to(dtype)
    fill = 255 if eight_bits else float("nan")
    for given in LAYOUTS:
        batch = padded(images, fill).contiguous(memory_format=given)
        before = batch.clone()
        extents = torch.tensor([image.shape[1:] for image in images])
        found = Normalization("cpu")(batch, extents, dtype, layout)
        assert torch.equal(found, expected)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=layout)
        assert torch.equal(batch.nan_to_num(), before.nan_to_num()), "the input was overwritten"


def test_a_batch_without_padding_needs_no_extents():
    image = pictures()[0]
    found = Normalization("cpu")(image[None])
    assert torch.equal(found[0], val_transform(None)(image))


def test_float64_by_default_changes_nothing():
    image = pictures()[0]
    expected = val_transform(None)(image)
    torch.set_default_dtype(torch.float64)
    try:
        found = Normalization("cpu")(image[None])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found[0], expected)

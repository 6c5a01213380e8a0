"""Padded batches and their masks."""

import pytest
import torch

from detr_fast.data.batching import NestedTensor, collate, nested_tensor_from_images
from detr_fast.reference.zero_outside import outside


def test_pads_bottom_and_right_with_zeros_and_masks_exactly_the_padding():
    images = [torch.rand(3, 4, 9) + 1, torch.rand(3, 7, 5) + 1, torch.rand(3, 1, 1) + 1]
    tensors, mask = nested_tensor_from_images(images).decompose()
    assert tensors.shape == (3, 3, 7, 9)
    assert mask.shape == (3, 7, 9)
    assert mask.dtype == torch.bool
    for image, row, padding in zip(images, tensors, mask, strict=True):
        _, h, w = image.shape
        assert torch.equal(row[:, :h, :w], image)
        assert not padding[:h, :w].any()
        assert padding.sum() == 7 * 9 - h * w
        assert (row[:, padding] == 0).all()


def test_images_of_one_size_have_no_padding():
    nested = nested_tensor_from_images([torch.rand(3, 4, 5)] * 2)
    assert not nested.mask.any()
    assert len(nested) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_keeps_the_dtype(dtype):
    assert nested_tensor_from_images([torch.zeros(3, 2, 2, dtype=dtype)]).tensors.dtype == dtype


def test_does_not_alias_its_inputs():
    image = torch.rand(3, 4, 5)
    nested = nested_tensor_from_images([image])
    nested.tensors.zero_()
    assert image.abs().sum() > 0


def test_non_contiguous_images():
    image = torch.rand(5, 4, 3).permute(2, 1, 0)
    assert torch.equal(nested_tensor_from_images([image]).tensors[0], image)


def test_to_moves_both():
    nested = nested_tensor_from_images([torch.rand(3, 4, 5)]).to("meta")
    assert isinstance(nested, NestedTensor)
    assert nested.device.type == nested.mask.device.type == "meta"


@pytest.mark.cuda
def test_pinned_batch_reaches_the_gpu_unchanged():
    nested = nested_tensor_from_images([torch.rand(3, 4, 5), torch.rand(3, 6, 2)])
    moved = nested.pin_memory().to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(moved.tensors.cpu(), nested.tensors)
    assert torch.equal(moved.mask.cpu(), nested.mask)


def test_empty_list():
    with pytest.raises(ValueError, match="at least one image; got an empty list"):
        nested_tensor_from_images([])
    with pytest.raises(ValueError, match="empty list"):
        collate([])


@pytest.mark.parametrize("shape", [(4, 5), (1, 3, 4, 5), (3, 0, 5)])
def test_wrong_shape_names_the_image(shape):
    with pytest.raises(ValueError, match=r"image 1 of the batch has shape \("):
        nested_tensor_from_images([torch.rand(3, 4, 5), torch.rand(shape)])


@pytest.mark.parametrize("other", [torch.rand(1, 4, 5), torch.zeros(3, 4, 5, dtype=torch.uint8)])
def test_images_that_disagree(other):
    with pytest.raises(ValueError, match=r"image 1 of the batch has . channels of torch\."):
        nested_tensor_from_images([torch.rand(3, 4, 5), other])


def test_collate_keeps_order_and_targets():
    targets = [{"labels": torch.tensor([i])} for i in range(3)]
    images = [torch.full((3, 2 + i, 4), float(i)) for i in range(3)]
    nested, collated = collate(list(zip(images, targets, strict=True)))
    assert [target["labels"].item() for target in collated] == [0, 1, 2]
    assert [float(tensor[0, 0, 0]) for tensor in nested.tensors] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "holes",
    [
        (slice(0, 2), slice(None)),  # padding above
        (slice(None), slice(0, 1)),  # padding on the left
        (slice(2, 3), slice(2, 3)),  # a hole
        (slice(2, 3), slice(None)),  # a band across
        (slice(3, 4), slice(3, 4)),  # a corner alone
    ],
)
def test_masks_that_are_no_rectangles_are_refused(holes):
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    NestedTensor(torch.zeros(2, 3, 4, 4), mask)
    mask[1][holes] = True
    with pytest.raises(ValueError, match=r"mask of image 1 .* no rectangle"):
        NestedTensor(torch.zeros(2, 3, 4, 4), mask)


def test_masks_of_rectangles_and_of_nothing_are_taken():
    mask = outside(torch.tensor([[4, 4], [1, 3], [0, 0]]), 4, 4)
    assert NestedTensor(torch.zeros(3, 3, 4, 4), mask).mask is mask

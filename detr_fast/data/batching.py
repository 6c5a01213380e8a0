"""Images of different sizes in one tensor, with the mask that says where each of them ends."""

from collections.abc import Sequence

import torch
from torch import Tensor


class NestedTensor:
    """Padded images and their mask, as DETR's backbone takes them.

    The models attend to rectangles, not to masks of any form: an image stands in the top left
    corner, or is padding altogether. Of a mask that says otherwise the first row and the first
    column count; on the CPU, where looking waits for no device, it is refused.

    Args:
        tensors: images, (B, 3, H, W), padded at the bottom and on the right.
        mask: (B, H, W) bool, True on padding, on the device of `tensors`.
        checked: whether the mask is known to be one of such rectangles, and need not be looked at.

    Raises:
        ValueError: what `mask`, on the CPU, leaves free is not a rectangle in the top left corner.
    """

    __slots__ = ("mask", "tensors")

    def __init__(self, tensors: Tensor, mask: Tensor, *, checked: bool = False):
        if not checked and mask.device.type == "cpu":
            _require_rectangles(mask)
        self.tensors = tensors
        self.mask = mask

    def to(self, device, non_blocking: bool = False) -> "NestedTensor":
        """The same batch on another device."""
        return NestedTensor(
            self.tensors.to(device, non_blocking=non_blocking),
            self.mask.to(device, non_blocking=non_blocking),
            checked=True,
        )

    def pin_memory(self) -> "NestedTensor":
        """The same batch in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        return NestedTensor(self.tensors.pin_memory(), self.mask.pin_memory(), checked=True)

    def decompose(self) -> tuple[Tensor, Tensor]:
        """`(tensors, mask)`."""
        return self.tensors, self.mask

    @property
    def device(self) -> torch.device:
        return self.tensors.device

    def __len__(self) -> int:
        return self.tensors.shape[0]

    def __repr__(self) -> str:
        return f"NestedTensor({tuple(self.tensors.shape)}, {self.tensors.dtype}, {self.device})"


def _require_rectangles(mask: Tensor) -> None:
    rows, columns = mask[:, :, :1], mask[:, :1, :]
    fits = ((rows | columns) == mask).flatten(1).all(1)
    fits &= (rows[:, 1:] >= rows[:, :-1]).flatten(1).all(1)
    fits &= (columns[..., 1:] >= columns[..., :-1]).flatten(1).all(1)
    if not fits.all():
        raise ValueError(
            f"the mask of image {fits.int().argmin().item()} of the batch leaves free what is no "
            "rectangle in the top left corner; pad images at the bottom and on the right, or pass "
            "them as a list."
        )


def nested_tensor_from_images(images: Sequence[Tensor]) -> NestedTensor:
    """Pads images with zeros to the largest height and the largest width among them.

    Args:
        images: tensors (3, H_i, W_i) of one dtype on one device; any channel count they share.

    Returns:
        A batch of canvas max(H_i) x max(W_i); image i stands in its top left corner.

    Raises:
        ValueError: the list is empty, or an image is not CHW, is empty, or differs from the first
            in channels, dtype or device.
    """
    if len(images) == 0:
        raise ValueError("a batch needs at least one image; got an empty list.")
    first = images[0]
    for i, image in enumerate(images):
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(
                f"image {i} of the batch has shape {tuple(image.shape)}; "
                "expected (channels, height, width), none of them 0."
            )
        kind = (image.shape[0], image.dtype, image.device)
        if kind != (first.shape[0], first.dtype, first.device):
            raise ValueError(
                f"image {i} of the batch has {image.shape[0]} channels of {image.dtype} on "
                f"{image.device}, image 0 {first.shape[0]} of {first.dtype} on {first.device}; "
                "the images of a batch must agree."
            )
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    tensors = first.new_zeros((len(images), first.shape[0], height, width))
    mask = torch.ones((len(images), height, width), dtype=torch.bool, device=first.device)
    for i, image in enumerate(images):
        _, h, w = image.shape
        tensors[i, :, :h, :w].copy_(image)
        mask[i, :h, :w] = False
    return NestedTensor(tensors, mask, checked=True)


def collate(batch: Sequence[tuple[Tensor, dict]]) -> tuple[NestedTensor, list[dict]]:
    """Turns `[(image, target), ...]` of a data set into one padded batch and a list of targets.

    Raises:
        ValueError: see `nested_tensor_from_images`.
    """
    images, targets = zip(*batch, strict=True) if batch else ((), ())
    return nested_tensor_from_images(images), list(targets)

"""From images as they are read to what a model takes, on its device.

The host decodes and resizes, in threads. For a CPU it normalises there as well. For a GPU the rest
would be the slowest part: there images travel as the 8-bit values that resizing gives, a quarter of
the bytes, in one copy a batch that nobody waits for, and the GPU normalises them.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..data.batching import NestedTensor
from ..data.normalization import Normalization
from ..data.transforms import val_transform
from ..models.detr import Samples
from ..reference.zero_outside import outside
from .loading import Preprocess

Size = tuple[int, int]


class Form(NamedTuple):
    """How a model takes its batches.

    Attributes:
        dtype: that it computes in.
        layout: memory format of a batch. A list of images has none.
    """

    dtype: torch.dtype
    layout: torch.memory_format = torch.contiguous_format


class Inputs(NamedTuple):
    """A batch for a model.

    Attributes:
        samples: as `DETR.forward` takes them, on the model's device.
        sizes: height and width of each image in pixels, without padding.
    """

    samples: Samples
    sizes: list[Size]

    @property
    def canvas(self) -> Size:
        """Height and width of the padded batch."""
        return _canvas(self.sizes)


class InputPath(Protocol):
    """The steps on the way; those of a batch follow each other, those of several may overlap."""

    def prepare(self, image: Tensor) -> Tensor:
        """An image of `read_image`, resized; called in any thread."""

    def gather(self, images: Sequence[Tensor]):
        """The images of a batch together, in whatever form; called in any thread."""

    def place(self, gathered, form: Form) -> Inputs:
        """What `gather` gave, on the device; called where the model is."""


def input_path(preprocess: Preprocess, device: torch.device) -> InputPath:
    """The way to the models of a device."""
    path = UploadedInputs if device.type == "cuda" else NormalisedInputs
    return path(preprocess, device)


class NormalisedInputs:
    """Normalises image by image, in the threads that resize; batches are lists."""

    def __init__(self, preprocess: Preprocess, device: torch.device):
        self._device = device
        self.prepare = val_transform(preprocess.short_side, preprocess.max_size)

    def gather(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `InputPath`."""
        return images

    def place(self, gathered: Sequence[Tensor], form: Form) -> Inputs:
        """See `InputPath`."""
        images = [image.to(self._device, form.dtype) for image in gathered]
        return Inputs(images, [tuple(image.shape[1:]) for image in images])


class Gathered(NamedTuple):
    """Images of a batch before they are normalised.

    Attributes:
        pixels: (B, H, W, 3) uint8, or float32 in [0, 1]; the padding is not written.
        sizes: height and width of each image.
    """

    pixels: Tensor
    sizes: list[Size]


class UploadedInputs:
    """Uploads batches before they are normalised, without waiting.

    Batches are tensors where no image is padded, otherwise `NestedTensor`s. They hold the values of
    `NormalisedInputs`, bit for bit.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device):
        self._device = device
        self._normalised = Normalization(device)
        self.prepare = val_transform(preprocess.short_side, preprocess.max_size, normalised=False)

    def gather(self, images: Sequence[Tensor]) -> Gathered:
        """See `InputPath`. Images of floating point make their batch one of floating point."""
        if any(image.dtype != torch.uint8 for image in images):
            images = [F.to_dtype(image, torch.float32, scale=True) for image in images]
        sizes = [tuple(image.shape[1:]) for image in images]
        # Colours innermost, as resizing leaves them: rows are copied, not single values. The memory
        # is page-locked, which a copy that nobody waits for reads from. It is new for every batch
        # and never written again, for the copy may be under way when the last reference goes:
        # torch's allocator of such memory notes each copy and gives none of it out before the
        # stream has passed it.
        pixels = torch.empty(
            (len(images), *_canvas(sizes), 3),
            dtype=images[0].dtype,
            pin_memory=self._device.type == "cuda",
        )
        for own, image, (height, width) in zip(pixels, images, sizes, strict=True):
            own[:height, :width].copy_(image.permute(1, 2, 0))
        return Gathered(pixels, sizes)

    def place(self, gathered: Gathered, form: Form) -> Inputs:
        """See `InputPath`."""
        pixels, sizes = gathered
        images = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        if len(set(sizes)) == 1:
            return Inputs(self._normalised(images, None, *form), sizes)
        extents = torch.tensor(sizes).to(self._device, non_blocking=True)
        normalised = self._normalised(images, extents, *form)
        padding = outside(extents, *images.shape[2:])
        return Inputs(NestedTensor(normalised, padding, checked=True), sizes)


def _canvas(sizes: Sequence[Size]) -> Size:
    return tuple(max(side) for side in zip(*sizes, strict=True))

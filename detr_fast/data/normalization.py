"""The normalisation of images, for whole batches of them, wherever they are."""

import torch
from torch import Tensor

from ..ops.zero_outside import zero_outside_

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization:
    """Normalises batches by ImageNet's mean and standard deviation, on their device.

    An image comes out as `transforms.val_transform` gives it, bit for bit: these are its operations
    in its order, all of them rounded in float32. Nothing here waits for the device.

    Args:
        device: where the batches are.
    """

    def __init__(self, device: torch.device | str):
        # Made once: a constant that comes from the host would be waited for.
        self._level, self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(device)
            for values in ((1 / 255,), IMAGENET_MEAN, IMAGENET_STD)
        )

    def __call__(
        self,
        images: Tensor,
        extents: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Normalises a batch.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float32 in [0, 1], in any memory format.
            extents: (B, 2) int64, rows and columns of each image; what is beyond is not looked at.
                None without padding.
            dtype: of the result, to which it is rounded at the end.
            layout: memory format of the result.

        Returns:
            (B, 3, H, W), a new tensor, zero in the padding.
        """
        if images.dtype == torch.uint8:
            values = (images * self._level).sub_(self._mean)
        else:
            values = images - self._mean
        normalised = torch.empty_like(images, dtype=dtype, memory_format=layout)
        torch.div(values, self._std, out=normalised)
        return normalised if extents is None else zero_outside_(normalised, extents)

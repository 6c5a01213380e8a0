"""Image files of every kind, decoded to 8-bit RGB in the orientation of their annotations."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F


class ImageError(ValueError):
    """An image cannot be used; the message names the file, the image id and the reason."""


def read_image(
    path: str | Path, image_id: int | None = None, size: tuple[int, int] | None = None
) -> tv_tensors.Image:
    """Decodes a file to RGB.

    COCO's boxes refer to the pixels as stored, so an EXIF orientation is ignored. Only where the
    stored size contradicts `size` and the oriented one agrees with it was the image annotated as
    oriented, and is turned.

    Args:
        path: a file of any format that Pillow reads, in any of its modes but 32-bit floats.
        image_id: for error messages.
        size: (height, width) that the annotations give, if they do.

    Returns:
        uint8 (3, H, W).

    Raises:
        ImageError: the file is missing, truncated, corrupt, of another size than `size`, has
            floating-point pixels, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _opened(path, image_id) as (image, where):
        return tv_tensors.Image(_pil_to_rgb(_orient(image, size, where), where))


def read_size(
    path: str | Path, image_id: int | None = None, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) of what `read_image` gives, without decoding it.

    Args:
        path, image_id, size: as there. The file is opened only where `size` is not known.

    Raises:
        ImageError: the file is missing, or its header cannot be read.
    """
    if size is not None:
        return size
    with _opened(path, image_id) as (image, _):
        return image.height, image.width


def to_rgb(image: Image.Image | np.ndarray | Tensor) -> tv_tensors.Image:
    """Brings an image in memory to RGB.

    Args:
        image: a PIL image; an array (H, W) or (H, W, C); or a tensor (H, W) or (C, H, W), with 1
            (grey), 2 (grey and alpha), 3 or 4 (RGB and alpha) channels. Alpha is dropped. Values
            uint8, uint16 (scaled to 8 bits), bool, or floating point in [0, 1].

    Returns:
        (3, H, W): uint8, or for floating-point input a float32 copy.

    Raises:
        ImageError: another type, shape, dtype or range.
    """
    if isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8 and image.shape[0] == 3:
        return image
    if isinstance(image, Image.Image):
        return tv_tensors.Image(_pil_to_rgb(image, "image"))
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.array(image))
        tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
    elif isinstance(image, Tensor):
        tensor = image.as_subclass(Tensor)
    else:
        raise ImageError(
            f"an image is a {type(image).__name__}; expected a PIL image, an array or a tensor."
        )
    return tv_tensors.Image(_eight_bits(_three_channels(tensor)))


@contextmanager
def _opened(path: str | Path, image_id: int | None) -> Iterator[tuple[Image.Image, str]]:
    """A file and how to name it in a message; what goes wrong with it becomes an `ImageError`."""
    where = str(path) if image_id is None else f"{path} (image id {image_id})"
    try:
        with Image.open(path) as image:
            _refuse_bomb(image, where)
            yield image, where
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{where}: there is no such file.") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{where}: refused as a decompression bomb: {error}") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data.
        raise ImageError(
            f"{where}: cannot be decoded, truncated or corrupt ({type(error).__name__}: {error})."
        ) from error


def _refuse_bomb(image: Image.Image, where: str) -> None:
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{where}: refused, {width}x{height} = {width * height} pixels are more than {limit}; "
            "raise PIL.Image.MAX_IMAGE_PIXELS if the file is to be trusted."
        )


def _orient(image: Image.Image, size: tuple[int, int] | None, where: str) -> Image.Image:
    if size is None or image.size == (size[1], size[0]):
        return image
    oriented = ImageOps.exif_transpose(image)
    if oriented.size == (size[1], size[0]):
        return oriented
    raise ImageError(
        f"{where}: the file is {image.width}x{image.height} pixels, the annotations say "
        f"{size[1]}x{size[0]}; boxes and image do not belong together."
    )


def _pil_to_rgb(image: Image.Image, where: str) -> Tensor:
    if image.mode.startswith("I"):
        return _eight_bits(_three_channels(_sixteen_bits(image, where)))
    if image.mode == "F":
        raise ImageError(
            f"{where}: 32-bit floating-point pixels have no agreed range; store 8 or 16 bits."
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return F.pil_to_tensor(image.convert("RGB"))


def _sixteen_bits(image: Image.Image, where: str) -> Tensor:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{where}: 32-bit integer pixels reach from {values.min()} to {values.max()}; "
            "expected 16 bits, 0 to 65535."
        )
    return torch.from_numpy(values.astype(np.uint16))


def _three_channels(image: Tensor) -> Tensor:
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4) or 0 in image.shape:
        raise ImageError(
            f"an image of shape {tuple(image.shape)} is none: expected a tensor (C, H, W) or an "
            "array (H, W, C) with 1 to 4 channels and at least one pixel."
        )
    return image[:1].expand(3, -1, -1) if image.shape[0] < 3 else image[:3]


def _eight_bits(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:
        return image.to(torch.int32).add_(128).div_(257, rounding_mode="floor").to(torch.uint8)
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if not image.is_floating_point():
        raise ImageError(
            f"an image has dtype {image.dtype}; expected uint8, uint16, bool or floats in [0, 1]."
        )
    image = image.to(torch.float32, copy=True)
    low, high = (float(value) for value in image.aminmax())
    if not (low >= 0 and high <= 1):
        raise ImageError(
            f"a floating-point image has values from {low:g} to {high:g}; expected [0, 1]: "
            "divide 8-bit values by 255, and do not normalise beforehand."
        )
    return image

"""Any picture a user may hold, as an upright RGB image."""

import os
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..data.images import ImageError, to_rgb

# What a folder is searched for.
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)

ImageSource = str | os.PathLike | Image.Image | np.ndarray | Tensor

_Used = TypeVar("_Used")


def read_image(source: ImageSource) -> tv_tensors.Image:
    """Read one image.

    The rotation that a camera notes in EXIF is applied, so that the result is what a person sees.
    Transparency is dropped, as in training. Of an animation the first frame is taken.

    Args:
        source: a path; a PIL image; an array HWC (CHW is recognised too) or a tensor CHW (HWC is
            recognised too), or either in two dimensions, of 1, 3 or 4 channels in the order RGB(A):
            uint8, uint16, or floating point in [0, 1].

    Returns:
        (3, H, W) uint8, or float32 in [0, 1] for floating-point input.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file or the array is no image, is truncated or corrupt, or is so large
            that it may be a decompression bomb; the message names it.
    """
    if isinstance(source, str | os.PathLike):
        return _with_file(Path(source), _to_upright_rgb)
    if isinstance(source, Image.Image):
        return _with_image(source, _to_upright_rgb)
    if isinstance(source, np.ndarray | Tensor) and source.ndim == 3:
        channels_first = isinstance(source, Tensor)
        if _is_channels_first(source) != channels_first:
            order = (2, 0, 1) if channels_first else (1, 2, 0)
            source = source.permute(order) if channels_first else source.transpose(order)
    if isinstance(source, Tensor):
        return to_rgb(source.detach().cpu())
    if isinstance(source, np.ndarray) and not source.flags.writeable:
        source = source.copy()  # torch warns of sharing memory that is not to be written
    return to_rgb(source)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(height, width) of what `read_image` gives; of a file from its header.

    The rotation of a PNG is left out, which may be noted behind the pixels: it would have to be
    decoded.

    Raises:
        FileNotFoundError, ValueError: as `read_image`, as far as the header tells.
    """
    if isinstance(source, str | os.PathLike):
        return _with_file(Path(source), _upright_size)
    if isinstance(source, Image.Image):
        return _with_image(source, _upright_size)
    if isinstance(source, np.ndarray | Tensor) and source.ndim == 3 and 0 not in source.shape:
        return tuple(source.shape[1:] if _is_channels_first(source) else source.shape[:2])
    return tuple(read_image(source).shape[1:])


def to_pil(image: tv_tensors.Image) -> Image.Image:
    """An image of `read_image` as an 8-bit RGB image of PIL."""
    return F.to_pil_image(F.to_dtype(image, torch.uint8, scale=True))


def list_sources(source) -> tuple[list[ImageSource], bool]:
    """The single images that a user's `source` stands for.

    Args:
        source: one image (see `read_image`), a list or tuple of images, a folder, or an array or
            tensor of four dimensions: a batch.

    Returns:
        The images and whether there can be several. Of a folder the files with an image's suffix,
        sorted by name; a warning says how many others were passed over.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if a folder contains no image.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return (_list_folder(path), True) if path.is_dir() else ([path], False)
    if isinstance(source, np.ndarray | Tensor) and source.ndim == 4:
        return list(source), True
    if isinstance(source, Sequence):
        return list(source), True
    return [source], False


def _list_folder(folder: Path) -> list[Path]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise ValueError(
            f"folder {folder} contains no image: {len(files)} files, none of them ends in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if len(images) < len(files):
        others = [file.name for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"folder {folder}: {len(others)} of {len(files)} files are not images and were "
            f"passed over ({named})",
            stacklevel=4,
        )
    return images


def _is_channels_first(source: np.ndarray | Tensor) -> bool:
    """Whether three axes are CHW: where both or neither can be, as is usual for the type."""
    first, last = source.shape[0] in (1, 3, 4), source.shape[2] in (1, 3, 4)
    return isinstance(source, Tensor) if first == last else first


# Filters of warnings belong to the process: two threads that change and restore them at the same
# time may leave them changed.
_opening = threading.Lock()
# An opened file is decoded at its first use, and may stand in a list twice.
_decoding = threading.Lock()
# EXIF's tag, and those of its values by which height and width change places.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def _with_file(path: Path, use: Callable[[Image.Image], _Used]) -> _Used:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected an image file")
    if not path.exists():
        raise FileNotFoundError(f"no image at {path}{_near(path)}")
    try:
        with _opening, warnings.catch_warnings():
            # Pillow warns from half of the size on at which it refuses; such images still fit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            return use(image)
    except UnidentifiedImageError:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not an image of a format that Pillow reads"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} was refused, it may be a decompression bomb: {error} If you trust it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except _DAMAGE as error:
        raise _damaged(str(path), error) from error


def _with_image(image: Image.Image, use: Callable[[Image.Image], _Used]) -> _Used:
    try:
        with _decoding:
            return use(image)
    except _DAMAGE as error:  # the pixels of an opened file are read only now
        name = str(getattr(image, "filename", "") or "the PIL image")
        raise _damaged(name, error) from error


# By what Pillow's decoders report damaged data; errors of the system are OSErrors with a number.
_DAMAGE = (OSError, SyntaxError, EOFError, IndexError, struct.error, ImageError)


def _damaged(name: str, error: Exception) -> Exception:
    if isinstance(error, ImageError):
        return ValueError(f"{name}: {error}")
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ValueError(f"{name} is truncated or corrupt: {error}")


def _to_upright_rgb(image: Image.Image) -> tv_tensors.Image:
    return to_rgb(ImageOps.exif_transpose(image))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def _near(path: Path) -> str:
    """What is there instead of a path that is not."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if existing != path.absolute().parent:
        return f"; {existing} is the part of its path that exists"
    same_stem = sorted(p.name for p in existing.glob("*") if p.stem.lower() == path.stem.lower())
    return f"; found {', '.join(same_stem)} there" if same_stem else f"; looked in {existing}"

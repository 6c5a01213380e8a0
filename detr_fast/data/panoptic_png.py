"""Segment ids as the colours of a PNG: COCO's format of panoptic maps.

An id is R + 256 G + 256^2 B (https://cocodataset.org/#format-results, panoptic segmentation); 0 is
void. Each pixel is exactly one segment's, so that whatever smooths, compresses or reduces colours
destroys the map: such files are refused.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

VOID = 0
LARGEST_ID = 2**24 - 1


class PanopticError(ValueError):
    """A panoptic map cannot be used; the message names the file or image and the reason."""


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H, W) of any integer type -> colours uint8 (H, W, 3).

    Raises:
        ValueError: an id below 0 or above 2^24 - 1.
    """
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() <= LARGEST_ID:
        outlier = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"segment id {outlier} has no colour; ids go from 0 to {LARGEST_ID}.")
    ids = ids.astype(np.uint32)
    return np.stack([(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=-1)


def rgb_to_ids(colours: np.ndarray) -> np.ndarray:
    """Colours uint8 (H, W, 3) -> segment ids int32 (H, W)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red + 256 * green + 256 * 256 * blue


def write_panoptic_png(path: str | Path, ids: np.ndarray) -> None:
    """Writes segment ids (H, W) as a PNG.

    Raises:
        ValueError: see `ids_to_rgb`; or the file would not be a PNG.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is not named .png; other formats do not keep ids.")
    Image.fromarray(ids_to_rgb(ids)).save(path)


def read_panoptic_png(
    path: str | Path,
    segment_ids: Iterable[int] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads segment ids.

    Args:
        path: PNG of 8-bit RGB.
        segment_ids: the ids that the annotations give; None accepts any.
        size: (height, width) that the annotations give, if they do.

    Returns:
        int32 (H, W).

    Raises:
        PanopticError: the file is missing, damaged, no PNG, of another mode than RGB or another
            size than `size`, or has ids that the annotations do not.
    """
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise PanopticError(
                    f"{path} is a {image.format}; only PNG keeps segment ids exact."
                )
            if image.mode != "RGB":
                raise PanopticError(
                    f"{path} has mode {image.mode}; a panoptic PNG is 8-bit RGB, id = R + 256 G + "
                    "256^2 B. It was converted by something that takes it for a picture."
                )
            ids = rgb_to_ids(np.asarray(image))
    except PanopticError:
        raise
    except FileNotFoundError:
        raise PanopticError(f"{path}: there is no such panoptic PNG.") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data.
        raise PanopticError(
            f"{path} cannot be decoded, truncated or corrupt ({type(error).__name__}: {error})."
        ) from error
    if size is not None and ids.shape != tuple(size):
        raise PanopticError(
            f"{path} is {ids.shape[1]}x{ids.shape[0]} pixels, its image {size[1]}x{size[0]}."
        )
    if segment_ids is not None:
        _refuse_unknown_ids(path, ids, segment_ids)
    return ids


def _refuse_unknown_ids(path: str | Path, ids: np.ndarray, segment_ids: Iterable[int]) -> None:
    known = np.array([VOID, *segment_ids], dtype=np.int64)
    found, counts = np.unique(ids, return_counts=True)
    strange = ~np.isin(found, known)
    if strange.any():
        raise PanopticError(
            f"{path} has {int(counts[strange].sum())} pixels of {int(strange.sum())} segment ids "
            f"that its annotation does not list ({', '.join(map(str, found[strange][:3]))}, ...). "
            "Was it resized with smoothing, or is it of another image? Resize ids with nearest "
            "interpolation only."
        )

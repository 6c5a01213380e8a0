"""Masks and panoptic segments in colour over a picture, with the names of their classes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from .draw import class_colour, draw_captions, enlarged

_OPACITY = 0.5
# How far, of a channel's range, segments of one class are apart in brightness.
_SHADES = (1.0, 0.72, 0.86, 0.58)


def draw_masks(
    image: Image.Image, masks: np.ndarray, class_ids: Sequence[int], *, opacity: float = _OPACITY
) -> Image.Image:
    """Colour the pixels of some objects.

    Args:
        image: the picture; it is not modified.
        masks: (n, H, W) bool of the picture's size, most important first, which lies on top.
        class_ids: n integers; a class has the same colour in every picture.
        opacity: of the colours, in [0, 1].

    Returns:
        A new RGB picture of the same size.

    Raises:
        ValueError: the lengths or sizes differ.
    """
    masks = np.asarray(masks, dtype=bool)
    if len(masks) != len(class_ids) or masks.shape[1:] != image.size[::-1]:
        raise ValueError(
            f"masks have shape {masks.shape} for {len(class_ids)} class ids and a picture of "
            f"{image.size[1]} x {image.size[0]}; expected one mask of its size for each class id"
        )
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).copy()
    for mask, class_id in reversed(list(zip(masks, class_ids, strict=True))):
        colour = np.array(class_colour(class_id), dtype=np.float32)
        pixels[mask] = (1 - opacity) * pixels[mask] + opacity * colour
        pixels[_rim(mask)] = colour
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def draw_segments(
    image: Image.Image,
    ids: np.ndarray,
    segment_ids: Sequence[int],
    class_ids: Sequence[int],
    captions: Sequence[str],
    *,
    opacity: float = _OPACITY,
    enlarge: bool = True,
) -> Image.Image:
    """Colour every segment of a panoptic map, and write on it what it is.

    Args:
        image: the picture; it is not modified.
        ids: (H, W) segment ids, of the picture's size. Ids that are not listed stay uncoloured.
        segment_ids: n of them.
        class_ids: the class of each, which gives its colour; segments of one class differ in shade.
        captions: the text of each.
        opacity: of the colours, in [0, 1].
        enlarge: see `draw.draw_boxes`.

    Returns:
        A new RGB picture.

    Raises:
        ValueError: the lengths or sizes differ.
    """
    if not len(segment_ids) == len(class_ids) == len(captions):
        raise ValueError(
            f"{len(segment_ids)} segments, {len(class_ids)} class ids and {len(captions)} captions;"
            " expected equal lengths"
        )
    if ids.shape != image.size[::-1]:
        raise ValueError(f"the map has shape {ids.shape}, the picture {image.size[::-1]}")
    canvas, factor = enlarged(image, enlarge)
    ids = ids.repeat(factor, 0).repeat(factor, 1)
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    seen: dict[int, int] = {}
    colours, places = [], []
    for segment_id, class_id in zip(segment_ids, class_ids, strict=True):
        shade = _SHADES[seen.setdefault(class_id, 0) % len(_SHADES)]
        seen[class_id] += 1
        colour = tuple(round(channel * shade) for channel in class_colour(class_id))
        mask = ids == segment_id
        pixels[mask] = (1 - opacity) * pixels[mask] + opacity * np.array(colour, dtype=np.float32)
        colours.append(colour)
        places.append(_middle(mask))
    pixels[_borders(ids)] = 255
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    return draw_captions(picture, places, captions, colours)


def _rim(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have a neighbour outside."""
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def _borders(ids: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour belongs to another segment."""
    border = np.zeros(ids.shape, dtype=bool)
    border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    border[:-1] |= ids[:-1] != ids[1:]
    return border


def _middle(mask: np.ndarray) -> tuple[float, float]:
    """x and y of the pixel that is farthest from the rim."""
    if not mask.any():
        return mask.shape[1] / 2, mask.shape[0] / 2
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return float(x), float(y)

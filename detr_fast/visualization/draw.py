"""Boxes with their class names and scores, drawn on a picture of any size."""

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SMALLEST_SIDE = 480  # a longer side below this is enlarged: letters need pixels
_LARGEST_FACTOR = 6
_GOLDEN_RATIO = 0.618033988749895

Box = tuple[float, float, float, float]


def draw_boxes(
    image: Image.Image,
    boxes: np.ndarray,
    class_ids: Sequence[int],
    captions: Sequence[str],
    *,
    enlarge: bool = True,
) -> Image.Image:
    """Draw boxes, and beside each of them what it is.

    Args:
        image: the picture; it is not modified.
        boxes: (n, 4) finite xyxy in pixels of `image`, most important first: its captions get the
            best places and lie on top. What is outside the picture is cut off.
        class_ids: n integers; a class has the same colour in every picture.
        captions: n texts.
        enlarge: whether to enlarge a small picture, by a whole factor, until captions are
            readable; otherwise the result has the size of `image`.

    Returns:
        A new RGB picture.

    Raises:
        ValueError: if the lengths differ.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(boxes) == len(class_ids) == len(captions):
        raise ValueError(
            f"{len(boxes)} boxes, {len(class_ids)} class ids and {len(captions)} captions; "
            "expected equal lengths"
        )
    canvas, factor = enlarged(image, enlarge)
    width, height = canvas.size
    limits = np.array([width - 1, height - 1] * 2)
    boxes = np.clip(np.rint(boxes * factor), 0, limits)
    # Pillow refuses corners in the wrong order, which a box of negative size has.
    boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    draw = ImageDraw.Draw(canvas)
    line = max(2, round((width * height) ** 0.5 / 300))
    font = _caption_font(canvas.size, len(boxes))
    colours = [class_colour(class_id) for class_id in class_ids]

    for box, colour in reversed(list(zip(boxes.tolist(), colours, strict=True))):
        _outline(draw, box, colour, line)
    places: list[Box] = []
    for box, caption in zip(boxes.tolist(), captions, strict=True):
        text_size = draw.textbbox((0, 0), caption, font=font, anchor="lt")[2:]
        places.append(_place(box, text_size, (width, height), line, places))
    for place, caption, colour in reversed(list(zip(places, captions, colours, strict=True))):
        _label(draw, place, caption, colour, font)
    return canvas


def draw_captions(
    image: Image.Image,
    places: Sequence[tuple[float, float]],
    captions: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> Image.Image:
    """Write captions on a picture, each about the middle of its place.

    Args:
        image: the picture; it is modified.
        places: x and y in pixels of each caption, which is moved where it would leave the picture.
        captions: n texts, most important first, which lie on top.
        colours: n colours of what they are written on.

    Returns:
        `image`.
    """
    draw = ImageDraw.Draw(image)
    font = _caption_font(image.size, len(captions))
    labels = []
    for (x, y), caption, colour in zip(places, captions, colours, strict=True):
        width, height = (side + 6 for side in draw.textbbox((0, 0), caption, font=font)[2:])
        left = min(max(x - width / 2, 0), max(0, image.width - width))
        top = min(max(y - height / 2, 0), max(0, image.height - height))
        labels.append(((left, top, left + width, top + height), caption, colour))
    for place, caption, colour in reversed(labels):
        _label(draw, place, caption, colour, font)
    return image


def enlarged(image: Image.Image, enlarge: bool = True) -> tuple[Image.Image, int]:
    """A copy in RGB, enlarged where captions could not be read, and by which whole factor."""
    factor = _enlargement(image.size) if enlarge else 1
    canvas = image.convert("RGB")  # a copy, also of an RGB picture
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    return canvas, factor


@functools.cache
def class_colour(class_id: int) -> tuple[int, int, int]:
    """A saturated RGB colour for a class, the same always; neighbouring ids differ strongly."""
    hue = (0.02 + class_id * _GOLDEN_RATIO) % 1.0
    # After every eight ids the colours also change in depth, since hues come close again.
    saturation, value = [(0.85, 1.0), (0.45, 1.0), (1.0, 0.65)][class_id // 8 % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def _enlargement(size: tuple[int, int]) -> int:
    return min(_LARGEST_FACTOR, max(1, -(-_SMALLEST_SIDE // max(size))))


def _caption_font(size: tuple[int, int], captions: int) -> ImageFont.FreeTypeFont:
    # Many captions are smaller, to hide less of what they are about.
    letters = (size[0] * size[1]) ** 0.5 / (38 if captions <= 12 else 48)
    return _font(max(10, round(letters)))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and more, at any size."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: tuple, line: int) -> None:
    """A coloured frame between two thin dark ones, to be seen on any background."""
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0), width=1)
    inner = (x0 + line, y0 + line, x1 - line, y1 - line)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        draw.rectangle(inner, outline=(0, 0, 0), width=1)
    draw.rectangle(box, outline=colour, width=line)


def _place(
    box: Box,
    text_size: tuple[float, float],
    image_size: tuple[int, int],
    line: int,
    taken: list[Box],
) -> Box:
    """Where a caption covers other captions least: above its box, else below, else inside."""
    x0, y0, x1, y1 = box
    pad = max(2, line)
    width, height = text_size[0] + 2 * pad, text_size[1] + 2 * pad
    corners = [
        (x0, y0 - height),
        (x1 - width, y0 - height),
        (x0, y1),
        (x1 - width, y1),
        (x0, y0),
        (x1 - width, y0),
        (x0, y1 - height),
        (x1 - width, y1 - height),
    ]
    best, least = None, None
    for left, top in corners:
        inside_left = min(max(left, 0), max(0, image_size[0] - width))
        inside_top = min(max(top, 0), max(0, image_size[1] - height))
        place = (inside_left, inside_top, inside_left + width, inside_top + height)
        moved = abs(inside_left - left) + abs(inside_top - top)
        cost = (sum(_overlap(place, other) for other in taken), moved)
        if least is None or cost < least:
            best, least = place, cost
    return best


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _label(draw, place: Box, caption: str, colour: tuple, font) -> None:
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    draw.rectangle(place, fill=colour, outline=(0, 0, 0), width=1)
    middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    text_colour = (0, 0, 0) if bright else (255, 255, 255)
    draw.text(middle, caption, fill=text_colour, font=font, anchor="mm")

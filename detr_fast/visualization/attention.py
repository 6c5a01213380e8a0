"""Where the decoder looked for each object, drawn over the image."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .draw import draw_boxes

_GAP = 6


def draw_attention(
    image: Image.Image,
    boxes: np.ndarray,
    class_ids: Sequence[int],
    captions: Sequence[str],
    weights: np.ndarray,
    covered: tuple[float, float],
    width: int = 480,
) -> Image.Image:
    """Draw each object with the attention of its query, side by side.

    Args:
        image: the picture that was looked at.
        boxes: (n, 4) xyxy in pixels of `image`.
        class_ids: n integers, which give the colours of the boxes.
        captions: n texts.
        weights: (n, Hf, Wf) attention on the grid of features.
        covered: rows and columns of the grid that the image takes up.
        width: of one of the pictures side by side, in pixels.

    Returns:
        One RGB picture, as square as possible: bright where the weight is greatest, scaled for each
        object by itself.

    Raises:
        ValueError: if there is no object, or the lengths differ.
    """
    if not 0 < len(boxes) == len(class_ids) == len(captions) == len(weights):
        raise ValueError(
            f"{len(boxes)} boxes, {len(class_ids)} class ids, {len(captions)} captions and "
            f"{len(weights)} attention maps; expected equally many, at least one"
        )
    scale = width / image.width
    size = (width, max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pictures = [
        draw_boxes(
            _heat(small, weights[i], covered),
            np.asarray(boxes[i : i + 1], dtype=np.float64) * scale,
            class_ids[i : i + 1],
            captions[i : i + 1],
            enlarge=False,
        )
        for i in range(len(boxes))
    ]
    columns = max(1, round(math.sqrt(len(pictures) * size[1] / size[0])))
    return _side_by_side(pictures, min(columns, len(pictures)))


def _heat(image: Image.Image, weights: np.ndarray, covered: tuple[float, float]) -> Image.Image:
    """The image in dim grey under colours for the weights."""
    from matplotlib import colormaps

    grid = Image.fromarray(np.asarray(weights, dtype=np.float32))
    rows, columns = covered
    # Linear between the centres of the cells; the box cuts off what lies beyond the image.
    smooth = grid.resize(image.size, Image.Resampling.BILINEAR, box=(0, 0, columns, rows))
    heat = np.clip(np.asarray(smooth), 0, None)
    heat = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    colours = colormaps["inferno"](heat)[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] / 255
    # The root keeps weights visible that are far below the greatest.
    opacity = 0.85 * np.sqrt(heat)[..., None]
    mixed = (1 - opacity) * 0.7 * grey + opacity * colours
    return Image.fromarray(np.rint(mixed * 255).astype(np.uint8))


def _side_by_side(pictures: list[Image.Image], columns: int) -> Image.Image:
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white"
    )
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + _GAP), i // columns * (height + _GAP)))
    return sheet

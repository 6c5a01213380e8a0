"""Few canvases for many image sizes.

Shapes that an engine has seen before are cheap, new ones are not, and images come in hundreds of
sizes. Resized to one short side, most have one of few ratios: 1:1, 4:3, 3:2, 5:3 and 2:1 are all
multiples of a sixth of the short side, so that lengths of that grid lie close above the sizes that
are frequent. 188 images of COCO val at short side 800 and at most 1333 need 10 canvases, of 2.7 %
more pixels than the images; multiples of 32 need 24, of 1.7 % more. But what COCO does not have
counts as well: no image of any ratio needs more than 21 canvases here, and 89 there.
"""

# The largest stride of a ResNet: canvases divide evenly at every stage.
_STRIDE = 32
_PARTS = 6
# Where images keep the sizes that they have, nothing says which are frequent.
_STEP = 64


def canvas(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """The smallest canvas of those kept ready that an image fits on.

    Args:
        height: of the image or the batch in pixels.
        width: likewise.
        short_side: what the short side of images is resized to, in pixels; None where they keep
            their own size.

    Returns:
        Height and width: each the next multiple of a sixth of `short_side`, rounded up to a
        multiple of 32; without a short side the next multiple of 64.
    """
    return _length(height, short_side), _length(width, short_side)


def _length(side: int, short_side: int | None) -> int:
    if short_side is None:
        return _up(side, _STEP)
    # Rounding up leaves room above each part, which may hold this side already.
    parts = max(side - _STRIDE, 0) * _PARTS // short_side
    while _part(parts, short_side) < side:
        parts += 1
    return _part(parts, short_side)


def _part(parts: int, short_side: int) -> int:
    return _up(-(-parts * short_side // _PARTS), _STRIDE)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

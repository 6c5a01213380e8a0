"""Where a token stands in its image: sine and learned encodings of the feature grid."""

import math

import torch
from torch import Tensor, nn

_EPS = 1e-6
_LARGEST_GRID = 50


class SinePositionEncoding(nn.Module):
    """Sines and cosines of each token's row and column, normalised by the image's own extent.

    DETR, appendix A.4: half of the channels encode y, half x. A coordinate counts the rows
    (columns) of the image up to and including this one, divided by their number and scaled to
    [0, 2 pi], so that padding does not move the encoding of an image.

    Args:
        num_features: channels per axis F, even; the encoding has 2 F.
        temperature: ratio between the longest and the shortest wavelength.
        normalize: divide by the image's extent; without it coordinates are token counts.
        scale: largest normalised coordinate, in radians.
    """

    def __init__(
        self,
        num_features: int,
        temperature: float = 10000.0,
        normalize: bool = True,
        scale: float = 2 * math.pi,
    ):
        super().__init__()
        self.num_features = num_features
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale

    def forward(self, features: Tensor, extents: Tensor | None) -> Tensor:
        """Encodes the grid of a feature map.

        Args:
            features: (B, C, Hf, Wf); gives shape, device and dtype.
            extents: (B, 2) int64, rows and columns of each image; None where no image is padded.

        Returns:
            (B, 2 F, Hf, Wf), y before x, in the dtype of `features`, computed in float32 (float64
            for float64 features): 16 bits cannot hold the coordinates, nor the eps that guards
            the division.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        batch, _, height, width = features.shape
        rows = torch.arange(1, height + 1, dtype=dtype, device=features.device)[None, :, None]
        columns = torch.arange(1, width + 1, dtype=dtype, device=features.device)[None, None, :]
        if extents is None:
            y, x, last_row, last_column = rows, columns, height, width
        else:
            last_row, last_column = extents.to(dtype)[:, :, None, None].unbind(1)
            # As in the original, a padded column has no rows to count, nor a padded row columns.
            y = torch.minimum(rows, last_row) * (columns <= last_column)
            x = torch.minimum(columns, last_column) * (rows <= last_row)
        if self.normalize:
            y = y / (last_row + _EPS) * self.scale
            x = x / (last_column + _EPS) * self.scale
        size = (batch, height, width, self.num_features)
        encoding = torch.cat((self._waves(y).expand(size), self._waves(x).expand(size)), dim=3)
        return encoding.permute(0, 3, 1, 2).to(features.dtype)

    def _waves(self, coordinate: Tensor) -> Tensor:
        """Any shape (...) -> (..., F), sine and cosine of each wavelength side by side."""
        i = torch.arange(self.num_features // 2, dtype=coordinate.dtype, device=coordinate.device)
        angle = coordinate[..., None] / self.temperature ** (2 * i / self.num_features)
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


class LearnedPositionEncoding(nn.Module):
    """One learned vector per row and per column, up to 50 of each.

    Args:
        num_features: channels per axis F; the encoding has 2 F.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.row_embed = nn.Embedding(_LARGEST_GRID, num_features)
        self.col_embed = nn.Embedding(_LARGEST_GRID, num_features)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, features: Tensor, extents: Tensor | None) -> Tensor:
        """Encodes the grid of a feature map; the same for every image, wherever its padding is.

        Args:
            features: (B, C, Hf, Wf); gives shape and dtype.
            extents: not used: rows and columns are counted from the top left corner.

        Returns:
            (B, 2 F, Hf, Wf), x before y, in the dtype of `features`.

        Raises:
            ValueError: the grid has more than 50 rows or columns.
        """
        return learned_grid(self.row_embed.weight, self.col_embed.weight, features)


def learned_grid(rows: Tensor, columns: Tensor, features: Tensor) -> Tensor:
    """Joins row vectors (R, F) and column vectors (R, F) into the encoding of a feature map's grid.

    Returns:
        (B, 2 F, Hf, Wf), columns before rows.

    Raises:
        ValueError: the grid of `features` (B, C, Hf, Wf) is larger than R.
    """
    batch, _, height, width = features.shape
    if max(height, width) > len(rows):
        raise ValueError(
            f"the feature map is {height} x {width} tokens, but learned position encodings exist "
            f"for {len(rows)} rows and columns; resize the images to at most "
            f"{len(rows)} x stride pixels a side, or use position_embedding='sine'."
        )
    x = columns[:width].expand(height, width, -1)
    y = rows[:height, None].expand(height, width, -1)
    encoding = torch.cat((x, y), dim=-1).permute(2, 0, 1).to(features.dtype)
    return encoding.expand(batch, -1, height, width)

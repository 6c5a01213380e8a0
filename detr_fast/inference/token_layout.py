"""Where the tokens of a batch of images lie, and attention to those of one image.

Padded, every image has the whole grid, and tokens in the padding are computed but never attended
to. Packed, the tokens of all images stand one after another and nothing else is computed. Which
keys a token sees is the same in both, so that the results differ by rounding alone.

Packed pays where a loop over images costs nothing, on a CPU: in a batch of mixed sizes of which a
share v is image, projections and feed-forward blocks take v of the time and attention, which needs
no mask then, about v squared. On a GPU a sequence whose length follows from the images fits no
captured graph, and its sizes would have to be read back; there the attention kernel skips the rows
of keys below an image instead.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..ops.attention import attention


class PaddedTokens:
    """Tokens (B, L, E), those of the whole grid for every image.

    Args:
        images: their number B.
        grid: (Hf, Wf), whose product is L.
        extents: (B, 2) int64, rows and columns of each image; None where no image is padded.
    """

    def __init__(self, images: int, grid: tuple[int, int], extents: Tensor | None):
        self.images = images
        self._valid = (extents, grid)

    def tokens(self, features: Tensor) -> Tensor:
        """Features (B, C, Hf, Wf) -> tokens (B, L, C)."""
        return features.flatten(2).transpose(1, 2)

    def among_tokens(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """From each token to those of its image; all are (B, L, E)."""
        return attend(query, key, value, heads, *self._valid)

    def to_tokens(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """From queries (B, Q, E) to the tokens of their image (B, L, E) -> (B, Q, E)."""
        return attend(query, key, value, heads, *self._valid)


class PackedTokens:
    """Tokens (1, N, E), image after image without padding; for a CPU.

    Args:
        extents: rows and columns (h, w) of each image on the grid; N is the sum of h * w.
    """

    def __init__(self, extents: Sequence[tuple[int, int]]):
        self.images = len(extents)
        self.extents = extents
        self._lengths = [rows * columns for rows, columns in extents]

    def tokens(self, features: Iterable[Tensor]) -> Tensor:
        """Features (C, Hf, Wf) of each image, best channels last -> tokens (1, N, C)."""
        own = zip(features, self.extents, strict=True)
        own = [image.permute(1, 2, 0)[:h, :w].flatten(0, 1) for image, (h, w) in own]
        return torch.cat(own)[None]

    def among_tokens(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """From each token to those of its image; all are (1, N, E)."""
        own = zip(*(x.split(self._lengths, 1) for x in (query, key, value)), strict=True)
        return torch.cat([attend(q, k, v, heads) for q, k, v in own], 1)

    def to_tokens(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """From queries (B, Q, E) to the tokens of their image, of (1, N, E) -> (B, Q, E)."""
        keys, values = (x.split(self._lengths, 1) for x in (key, value))
        own = zip(query.split(1), keys, values, strict=True)
        return torch.cat([attend(q, k, v, heads) for q, k, v in own])


TokenLayout = PaddedTokens | PackedTokens


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    extents: Tensor | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """(B, L, E), (B, K, E), (B, K, E) -> (B, L, E)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return attention(q, k, v, extents, grid).transpose(1, 2).flatten(2)

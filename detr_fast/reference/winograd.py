"""3x3 convolution of stride 1 by Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308).

Every 2x2 outputs come from 4x4 inputs d, with weights g of 3x3, as A^T [(G g G^T) * (B^T d B)] A,
in 16 products a channel where a sum of products takes 36. With a dilation an image is dilation^2
images that lie interleaved.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packed import finished, packed, unpacked

INPUTS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T
WEIGHTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
OUTPUTS = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T


def winograd_weight(weight: Tensor) -> Tensor:
    """Transforms weights in float64 and lays them out as they are multiplied.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (O / 64, 16, I / w, 64, w) in the dtype of `weight`, see `packed`.
    """
    matrix = torch.tensor(WEIGHTS, dtype=torch.float64, device=weight.device)
    transformed = torch.einsum("ia,ocab,jb->ijoc", matrix, weight.double(), matrix)
    return packed(transformed.to(weight.dtype).flatten(0, 1))


def tiles(x: Tensor, dilation: int) -> Tensor:
    """The inputs of every tile.

    Args:
        x: (B, C, H, W).
        dilation: D.

    Returns:
        (B, C, D, D, rows, columns, 4, 4) with zeros beyond the image; the rows of tiles of one of
        the interleaved images number H / 2D, rounded up, and one at least.
    """
    height, width = x.shape[2:]
    rows, columns = (max(1, -(-side // (2 * dilation))) for side in (height, width))
    below = 2 * dilation * rows + dilation - height
    right = 2 * dilation * columns + dilation - width
    padded = F.pad(x, (dilation, right, dilation, below))
    interleaved = padded.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))
    return interleaved.permute(0, 1, 3, 5, 2, 4).unfold(4, 4, 2).unfold(5, 4, 2)


def image(outputs: Tensor, height: int, width: int) -> Tensor:
    """The image (B, O, height, width) of outputs (B, O, D, D, rows, columns, 2, 2) of tiles."""
    rows_first = outputs.permute(0, 1, 4, 6, 2, 5, 7, 3)
    return rows_first.flatten(5, 7).flatten(2, 4)[..., :height, :width]


def winograd_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int, relu: bool
) -> Tensor:
    """`relu(conv(x) + bias)`; arguments and result as in `ops.winograd`."""
    return finished(_convolved(x, weight, bias, dilation), x.dtype, relu)


def winograd_convolution_(
    other: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dilation: int, relu: bool
) -> None:
    """`relu(conv(x) + bias + other)`, written to `other`."""
    other.copy_(finished(_convolved(x, weight, bias, dilation) + other, x.dtype, relu))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """The sums (B, O, H, W), in float32 or wider; transformed inputs have the dtype of `x`.

    In the products b is an image, c a channel that goes in and o one that comes out, p and q say
    which of the interleaved images, y and x which tile, and i, j, k and l are places in a tile.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    of_inputs, of_outputs = (
        torch.tensor(matrix, dtype=wide, device=x.device) for matrix in (INPUTS, OUTPUTS)
    )
    transformed = torch.einsum(
        "ik,bcpqyxkl,jl->bcpqyxij", of_inputs, tiles(x, dilation).to(wide), of_inputs
    )
    products = torch.einsum(
        "bcpqyxij,ijoc->bopqyxij",
        transformed.to(x.dtype).to(wide),
        unpacked(weight).unflatten(0, (4, 4)).to(wide),
    )
    outputs = torch.einsum("ik,bopqyxkl,jl->bopqyxij", of_outputs, products, of_outputs)
    return image(outputs, *x.shape[2:]) + bias.to(wide)[:, None, None]

"""1x1 convolution without padding: a product of the channels of every `stride`-th pixel."""

import torch
from torch import Tensor

from .packed import finished, unpacked


def pointwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, relu: bool
) -> Tensor:
    """`relu(conv(x) + bias)`; arguments and result as in `ops.pointwise`."""
    return finished(_convolved(x, weight, bias, stride), x.dtype, relu)


def pointwise_convolution_(
    other: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stride: int, relu: bool
) -> None:
    """`relu(conv(x) + bias + other)`, written to `other`."""
    other.copy_(finished(_convolved(x, weight, bias, stride) + other, x.dtype, relu))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The sums (B, O, H', W'), in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pixels = x[..., ::stride, ::stride].to(wide)
    products = torch.einsum("bihw,oi->bohw", pixels, unpacked(weight).to(wide))
    return products + bias.to(wide)[:, None, None]

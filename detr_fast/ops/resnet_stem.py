"""How a ResNet begins, without the images between convolution and maximum in memory."""

import torch
from torch import Tensor

from ..reference import resnet_stem as reference
from ..reference.packed import OUTPUT_STEP
from ._convolution import check_arguments, empty_outputs, kernel_is_faster
from ._library import TORCH_ELSEWHERE, check_floating, define


def resnet_stem_is_faster(
    x: Tensor, weight: Tensor, convolution: tuple, maximum: tuple | None
) -> bool:
    """Whether `resnet_stem` computes how a network begins, and faster than torch's operations do.

    It does in the `FASTER_DTYPES` of this CPU.

    Args:
        x: (B, I, H, W).
        weight: of the convolution, (O, I, h, w), not packed.
        convolution: its stride, padding and dilation, each down and to the right.
        maximum: what `max_pool2d` takes after its input: kernel, stride, padding and dilation, each
            down and to the right, `ceil_mode` and `return_indices`; None where something else
            follows.
    """
    return (
        tuple(weight.shape[1:]) == (reference.CHANNELS, *reference.KERNEL)
        and convolution == reference.CONVOLUTION
        and maximum == reference.MAXIMUM
        and kernel_is_faster(x, weight, reference.CHANNELS)
    )


def resnet_stem_weight(weight: Tensor) -> Tensor:
    """Packs the weights of the convolution for `resnet_stem`.

    Args:
        weight: (O, 3, 7, 7), floating point; O a multiple of 64.

    Returns:
        A tensor of the dtype of `weight`, in an order of its own.

    Raises:
        TypeError: `weight` is not floating point.
        ValueError: a shape that does not fit.
    """
    check_floating("weight", weight)
    kernel = (reference.CHANNELS, *reference.KERNEL)
    if tuple(weight.shape[1:]) != kernel or weight.shape[0] % OUTPUT_STEP:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected (O, 3, 7, 7), O a multiple of "
            f"{OUTPUT_STEP}."
        )
    return reference.resnet_stem_weight(weight)


def resnet_stem(x: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None = None) -> Tensor:
    """`max_pool2d(relu(conv2d(x) + bias))`: 7x7 of stride 2, then 3x3 of stride 2.

    Both are padded as in a ResNet (He et al. 2016, Table 1). Sums are in float32 or wider and
    rounded once, at the end. On a CPU with a kernel for the dtype what an image gives depends
    neither on the others nor on the number of threads. Not differentiable.

    Args:
        x: (B, 3, H, W) of a pixel at least, floating point; fastest where channels last.
        weight: what `resnet_stem_weight` gives, in the dtype of `x`.
        bias: (O,) in that dtype.
        extents: (B, 2) int64 on the device of `x`, rows and columns of each image in pixels:
            beyond half of them, rounded up, the convolution counts as 0. None to let it count.

    Returns:
        (B, O, ceil(H / 4), ceil(W / 4)), channels last.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes or devices that do not fit.
        RuntimeError: an argument takes part in a computation whose gradient is recorded.
    """
    _check(x, weight, bias, extents)
    return _operation(x, weight, bias, extents)


def _check(x: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None) -> None:
    check_floating("x", x)
    if x.ndim != 4 or x.shape[1] != reference.CHANNELS or 0 in x.shape[2:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: expected (B, 3, H, W) with a pixel at least."
        )
    check_arguments("resnet_stem", x, weight, bias, words=(reference.words(x.dtype),))
    if extents is None:
        return
    if extents.dtype != torch.int64:
        raise TypeError(f"extents have dtype {extents.dtype}: use int64.")
    if extents.device != x.device:
        raise ValueError(f"extents are on {extents.device}, x on {x.device}: use one device.")
    if tuple(extents.shape) != (len(x), 2):
        raise ValueError(f"extents have shape {tuple(extents.shape)}: expected {(len(x), 2)}.")


_operation = define(
    "resnet_stem(Tensor x, Tensor weight, Tensor bias, Tensor? extents) -> Tensor",
    reference.resnet_stem,
    lambda x, weight, bias, extents: empty_outputs(x, bias, 4),
)
TORCH_ELSEWHERE.add("resnet_stem")

"""How a ResNet begins, without the images between convolution and maximum in memory."""

import torch
from torch import Tensor

from ..reference import resnet_stem as reference
from ._library import TORCH_ELSEWHERE, check_floating, define
from .winograd import _FASTER_DTYPES


def resnet_stem_is_faster(images: Tensor, weight: Tensor) -> bool:
    """Whether `resnet_stem` has a kernel for these images, faster than torch's operations.

    Args:
        images: (B, 3, H, W).
        weight: of the convolution, (O, 3, 7, 7), not packed.
    """
    return (
        images.is_cpu
        and images.dtype == weight.dtype
        and images.dtype in _FASTER_DTYPES
        and tuple(weight.shape[1:]) == (reference.CHANNELS, reference.KERNEL, reference.KERNEL)
        and weight.shape[0] % reference.OUTPUT_STEP == 0
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
    kernel = (reference.CHANNELS, reference.KERNEL, reference.KERNEL)
    if tuple(weight.shape[1:]) != kernel or weight.shape[0] % reference.OUTPUT_STEP != 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected (O, 3, 7, 7), O a multiple of "
            f"{reference.OUTPUT_STEP}."
        )
    return reference.resnet_stem_weight(weight)


def resnet_stem(
    images: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None = None
) -> Tensor:
    """`max_pool2d(relu(conv2d(images) + bias))`: 7x7 of stride 2, then 3x3 of stride 2.

    Both are padded as in a ResNet (He et al. 2016, Table 1). Sums are in float32 or wider and
    rounded once, at the end. On a CPU with a kernel for the dtype what an image gives depends
    neither on the others nor on the number of threads. Not differentiable.

    Args:
        images: (B, 3, H, W) of a pixel at least, floating point; fastest where channels last.
        weight: what `resnet_stem_weight` gives, in the dtype of `images`.
        bias: (O,) in that dtype.
        extents: (B, 2) int64 on the device of `images`, rows and columns of each image in pixels:
            beyond half of them, rounded up, the convolution counts as 0. None to let it count.

    Returns:
        (B, O, ceil(H / 4), ceil(W / 4)), channels last.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes or devices that do not fit.
        RuntimeError: an argument takes part in a computation whose gradient is recorded.
    """
    _check(images, weight, bias, extents)
    return _operation(images, weight, bias, extents)


def _check(images: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None) -> None:
    check_floating("images", images)
    if images.ndim != 4 or images.shape[1] != reference.CHANNELS or 0 in images.shape[2:]:
        raise ValueError(
            f"images have shape {tuple(images.shape)}: expected (B, 3, H, W) with a pixel at least."
        )
    strips = weight.shape[0] if weight.ndim else 0
    step, dtype = reference.OUTPUT_STEP, images.dtype
    expected = {
        "weight": (strips, reference.words(dtype), step, reference.in_word(dtype)),
        "bias": (strips * step,),
        "extents": (images.shape[0], 2),
    }
    given = {"weight": weight, "bias": bias} | ({} if extents is None else {"extents": extents})
    for name, tensor in given.items():
        wanted = torch.int64 if name == "extents" else dtype
        if tensor.dtype != wanted:
            raise TypeError(f"{name} has dtype {tensor.dtype}: use {wanted}.")
        if tensor.device != images.device:
            raise ValueError(
                f"{name} is on {tensor.device}, images on {images.device}: use one device."
            )
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: images {tuple(images.shape)} and weight "
                f"{tuple(weight.shape)} need {expected[name]}."
            )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (images, *given.values())):
        raise RuntimeError("resnet_stem is not differentiable: use torch's own operations.")


def _fake(images: Tensor, weight: Tensor, bias: Tensor, extents: Tensor | None) -> Tensor:
    sides = [(side + 3) // 4 for side in images.shape[2:]]
    return images.new_empty((images.shape[0], bias.shape[0], *sides)).contiguous(
        memory_format=torch.channels_last
    )


_operation = define(
    "resnet_stem(Tensor images, Tensor weight, Tensor bias, Tensor? extents) -> Tensor",
    reference.resnet_stem,
    _fake,
)
TORCH_ELSEWHERE.add("resnet_stem")

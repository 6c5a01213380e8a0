"""Zeros beyond each image's own extent on a padded feature map, as a new tensor and in place."""

import torch
from torch import Tensor

from ..reference import zero_outside as reference
from ._library import check_floating, define, define_autograd


def zero_outside(features: Tensor, extents: Tensor) -> Tensor:
    """Features with zeros beyond the extent of each image. Differentiable.

    Convolutions with a kernel larger than 1 then see at the border of an image in a padded batch
    what they see at the border of the image alone.

    Args:
        features: (B, C, H, W), floating point, in any memory format.
        extents: (B, 2) int64 on the device of `features`: rows and columns of each image, counted
            from the top left corner; what exceeds H and W counts as H and W.

    Returns:
        (B, C, H, W), a new tensor in the memory format of `features`.

    Raises:
        TypeError: `features` is not floating point, or `extents` not int64.
        ValueError: shapes or devices that do not fit.
    """
    _check(features, extents)
    return _operation(features, extents)


def zero_outside_(features: Tensor, extents: Tensor) -> Tensor:
    """The same in place, writing nothing but the padding. Not differentiable.

    Args:
        features, extents: as in `zero_outside`.

    Returns:
        `features`.

    Raises:
        TypeError, ValueError: as `zero_outside`.
        RuntimeError: `features` takes part in a computation whose gradient is recorded.
    """
    _check(features, extents)
    if torch.is_grad_enabled() and features.requires_grad:
        raise RuntimeError(
            "zero_outside_ writes in place, which autograd cannot record: use zero_outside."
        )
    _in_place(features, extents)
    return features


def _check(features: Tensor, extents: Tensor) -> None:
    check_floating("features", features)
    if features.ndim != 4:
        raise ValueError(f"features have shape {tuple(features.shape)}: expected (B, C, H, W).")
    if extents.dtype != torch.int64:
        raise TypeError(f"extents have dtype {extents.dtype}: use int64.")
    if extents.shape != (features.shape[0], 2):
        raise ValueError(
            f"extents have shape {tuple(extents.shape)}: expected ({features.shape[0]}, 2), rows "
            "and columns of each image."
        )
    if extents.device != features.device:
        raise ValueError(f"extents are on {extents.device}, features on {features.device}.")


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
    (extents,) = ctx.saved_tensors
    return _operation(gradient, extents), None


_operation = define(
    "zero_outside(Tensor features, Tensor extents) -> Tensor",
    reference.zero_outside,
    lambda features, extents: torch.empty_like(features),
)
define_autograd(
    "zero_outside",
    _backward,
    lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)
_in_place = define(
    "zero_outside_(Tensor(a!) features, Tensor extents) -> ()",
    reference.zero_outside_,
    lambda features, extents: None,
)

"""What the operations for convolution share: when they are faster, checks, and their outputs."""

import torch
from torch import Tensor

from ..reference.packed import OUTPUT_STEP, in_word
from ._library import check_floating, compiled_inference_dtypes

# Dtypes with kernels that are faster than oneDNN: float32 on CPUs with AVX-512, bfloat16 on those
# with AVX512-BF16 but without AMX, whose products are many times as fast.
_LEFT_TO_AMX = {torch.bfloat16} if torch.cpu._is_amx_tile_supported() else set()
FASTER_DTYPES = compiled_inference_dtypes() - _LEFT_TO_AMX


def kernel_is_faster(x: Tensor, weight: Tensor, input_step: int) -> bool:
    """Whether there is a kernel for inputs and weights like these, and faster than oneDNN's.

    It is asked of dtype, channels and CPU alone, and not of the size or number of images, so that
    one gives the same alone and in a batch.

    Args:
        x: the inputs.
        weight: (O, I, ...), not packed.
        input_step: what I must be a multiple of.
    """
    return (
        x.is_cpu
        and x.dtype == weight.dtype
        and x.dtype in FASTER_DTYPES
        and weight.shape[0] % OUTPUT_STEP == 0
        and weight.shape[1] % input_step == 0
    )


def check_weight(weight: Tensor, kernel: tuple[int, ...], input_step: int) -> None:
    """Raises a TypeError or ValueError unless weights (O, I, *kernel) can be packed.

    Args:
        weight: not packed.
        kernel: the sides that it must have.
        input_step: what I must be a multiple of.
    """
    check_floating("weight", weight)
    fits = weight.ndim == 2 + len(kernel) and tuple(weight.shape[2:]) == kernel
    if not fits or weight.shape[0] % OUTPUT_STEP or weight.shape[1] % input_step:
        sides = "".join(f", {side}" for side in kernel)
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected (O, I{sides}), O a multiple of "
            f"{OUTPUT_STEP} and I of {input_step}."
        )


def check_convolution(
    operation: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    other: Tensor | None,
    *,
    input_step: int,
    planes: tuple[int, ...] = (),
    stride: int = 1,
) -> None:
    """Checks the tensors of a convolution with packed weights.

    Args:
        operation: its name, for an error.
        x: (B, I, H, W).
        weight: (O / 64, *planes, I / w, 64, w), w being `in_word`.
        bias: (O,).
        other: (B, O, H', W') with sides a `stride`-th of those of `x`, rounded up; None for none.
        input_step: what I must be a multiple of.
        planes: numbers of matrices O x I that the weights consist of, where they are several.
        stride: of rows and columns.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes or devices that do not fit.
        RuntimeError: an argument takes part in a computation whose gradient is recorded.
    """
    check_floating("x", x)
    if x.ndim != 4 or x.shape[1] % input_step != 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: expected (B, I, H, W), I a multiple of {input_step}."
        )
    words = (*planes, x.shape[1] // in_word(x.dtype))
    check_arguments(operation, x, weight, bias, other, words=words, stride=stride)


def check_arguments(
    operation: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    other: Tensor | None = None,
    *,
    words: tuple[int, ...],
    stride: int = 1,
) -> None:
    """Checks what comes to an operation beside its inputs.

    Args:
        operation, bias, other, stride: as in `check_convolution`.
        x: the inputs, checked.
        weight: (O / 64, *words, 64, w).
        words: numbers of words of 32 bits that the weights of one output fill, in as many
            dimensions as they have.

    Raises:
        TypeError, ValueError, RuntimeError: as `check_convolution`.
    """
    strips = weight.shape[0] if weight.ndim else 0
    outputs = strips * OUTPUT_STEP
    expected = {
        "weight": (strips, *words, OUTPUT_STEP, in_word(x.dtype)),
        "bias": (outputs,),
        "other": (x.shape[0], outputs, *output_sides(*x.shape[2:], stride)),
    }
    given = {"weight": weight, "bias": bias} | ({} if other is None else {"other": other})
    for name, tensor in given.items():
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, x {x.dtype}: use one dtype.")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}: use one device.")
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: x {tuple(x.shape)} and weight "
                f"{tuple(weight.shape)} need {expected[name]}."
            )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *given.values())):
        raise RuntimeError(
            f"{operation} is not differentiable: use torch's functions for convolutions and "
            "linear layers."
        )


def empty_outputs(x: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A tensor (B, O, H', W') as a convolution of `x` (B, I, H, W) gives, channels last."""
    shape = (x.shape[0], bias.shape[0], *output_sides(*x.shape[2:], stride))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def output_sides(height: int, width: int, stride: int) -> tuple[int, int]:
    """A `stride`-th of the sides of an image, rounded up."""
    return (height + stride - 1) // stride, (width + stride - 1) // stride

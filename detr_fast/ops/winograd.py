"""3x3 convolutions of stride 1 with bias, sum and ReLU, in fewer products than they have terms."""

import torch
from torch import Tensor

from ..reference import winograd as reference
from ._library import TORCH_ELSEWHERE, check_floating, compiled_inference_dtypes, define

# What the channels that go in come in multiples of; those that come out, see the reference.
_CHANNEL_STEP = 16


def winograd_is_faster(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> bool:
    """Whether `winograd_convolution` computes a convolution, and faster than torch does.

    It does on CPUs with AVX-512 in float32 and with AVX512-BF16 in bfloat16; but not in bfloat16 on
    CPUs with AMX, whose products are many times as fast. Nothing here depends on the size of the
    images, so that one gets the same alone and in a batch: with 512 channels those below 12 x 10
    take longer than with oneDNN, by less than half a millisecond (two cores of an AMD EPYC, Zen 5).

    Args:
        x: (B, I, H, W).
        weight: (O, I, h, w), not transformed.
        stride, padding, dilation: down and to the right.
    """
    return (
        x.is_cpu
        and x.dtype == weight.dtype
        and x.dtype in _FASTER_DTYPES
        and tuple(weight.shape[2:]) == (3, 3)
        and tuple(stride) == (1, 1)
        and tuple(padding) == tuple(dilation)
        and dilation[0] == dilation[1]
        and weight.shape[0] % reference.OUTPUT_STEP == 0
        and weight.shape[1] % _CHANNEL_STEP == 0
    )


def winograd_weight(weight: Tensor) -> Tensor:
    """Transforms the weights of a 3x3 convolution, in float64, for `winograd_convolution`.

    Args:
        weight: (O, I, 3, 3), floating point; O a multiple of 64 and I of 16.

    Returns:
        A tensor of the dtype of `weight` and 16 / 9 of its size, in an order of its own.

    Raises:
        TypeError: `weight` is not floating point.
        ValueError: a shape that does not fit.
    """
    check_floating("weight", weight)
    outputs, inputs = weight.shape[:2]
    fits = outputs % reference.OUTPUT_STEP == 0 and inputs % _CHANNEL_STEP == 0
    if weight.shape[2:] != (3, 3) or not fits:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected (O, I, 3, 3), O a multiple of "
            f"{reference.OUTPUT_STEP} and I of {_CHANNEL_STEP}."
        )
    return reference.winograd_weight(weight)


def winograd_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, relu: bool = False
) -> Tensor:
    """`relu(conv2d(x) + bias)`, 3x3, stride 1, by Winograd's F(2x2, 3x3), 16 products for 36.

    For finite numbers: an infinite one makes NaN of the outputs around it. Sums are in float32 or
    wider; transformed inputs and weights have the dtype of `x`, so that in 16 bits the error is
    about twice that of rounding weights and result alone. On a CPU with a kernel for the dtype what
    an image gives depends neither on the others nor on the number of threads. Not differentiable.

    Args:
        x: (B, I, H, W), floating point; fastest where channels last.
        weight: what `winograd_weight` gives, in the dtype of `x`.
        bias: (O,) in that dtype.
        dilation: of rows and columns, which is the padding with zeros, too.
        relu: whether negative results become 0.

    Returns:
        (B, O, H, W), channels last.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes or devices that do not fit, or a dilation below 1.
        RuntimeError: an argument takes part in a computation whose gradient is recorded.
    """
    _check(x, weight, bias, dilation)
    return _operation(x, weight, bias, dilation, relu)


def winograd_convolution_(
    other: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, relu: bool = False
) -> Tensor:
    """`relu(conv2d(x) + bias + other)`, written to `other`.

    Args:
        other: (B, O, H, W) in the dtype of `x`, of which it shares no memory; fastest where
            channels last.
        x, weight, bias, dilation, relu: as in `winograd_convolution`.

    Returns:
        `other`.

    Raises:
        TypeError, ValueError, RuntimeError: as `winograd_convolution`.
    """
    _check(x, weight, bias, dilation, other)
    _in_place(other, x, weight, bias, dilation, relu)
    return other


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int, other: Tensor | None = None
) -> None:
    check_floating("x", x)
    if x.ndim != 4 or x.shape[1] % _CHANNEL_STEP != 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: expected (B, I, H, W), I a multiple of {_CHANNEL_STEP}."
        )
    images, inputs, height, width = x.shape
    strips = weight.shape[0] if weight.ndim else 0
    outputs, word = strips * reference.OUTPUT_STEP, reference.in_word(x.dtype)
    expected = {
        "weight": (strips, 16, inputs // word, reference.OUTPUT_STEP, word),
        "bias": (outputs,),
        "other": (images, outputs, height, width),
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
    if dilation < 1:
        raise ValueError(f"dilation is {dilation}: use 1 or more.")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *given.values())):
        raise RuntimeError(
            "winograd_convolution is not differentiable: use torch.nn.functional.conv2d."
        )


def _fake(x: Tensor, weight: Tensor, bias: Tensor, dilation, relu) -> Tensor:
    shape = (x.shape[0], bias.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_PROBLEM = "Tensor x, Tensor weight, Tensor bias, SymInt dilation, bool relu"
_operation = define(
    f"winograd_convolution({_PROBLEM}) -> Tensor", reference.winograd_convolution, _fake
)
_in_place = define(
    f"winograd_convolution_(Tensor(a!) other, {_PROBLEM}) -> ()",
    reference.winograd_convolution_,
    lambda other, x, weight, bias, dilation, relu: None,
)
TORCH_ELSEWHERE.update({"winograd_convolution", "winograd_convolution_"})

_AMX = {torch.bfloat16} if torch.cpu._is_amx_tile_supported() else set()
_FASTER_DTYPES = compiled_inference_dtypes() - _AMX

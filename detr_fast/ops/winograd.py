"""3x3 convolutions of stride 1 with bias, sum and ReLU, in fewer products than they have terms."""

from torch import Tensor

from ..reference import winograd as reference
from ._convolution import check_convolution, check_weight, empty_outputs, kernel_is_faster
from ._library import TORCH_ELSEWHERE, define

# What the channels of the inputs come in multiples of.
_INPUT_STEP = 16


def winograd_is_faster(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> bool:
    """Whether `winograd_convolution` computes a convolution, and faster than torch does.

    It does in the `FASTER_DTYPES` of this CPU. With 512 channels images below 12 x 10 pixels take
    longer than with oneDNN, by less than half a millisecond (two cores of an AMD EPYC, Zen 5): that
    the size does not count is the rule of `kernel_is_faster`.

    Args:
        x: (B, I, H, W).
        weight: (O, I, h, w), not transformed.
        stride, padding, dilation: down and to the right.
    """
    return (
        tuple(weight.shape[2:]) == (3, 3)
        and tuple(stride) == (1, 1)
        and tuple(padding) == tuple(dilation)
        and dilation[0] == dilation[1]
        and kernel_is_faster(x, weight, _INPUT_STEP)
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
    check_weight(weight, (3, 3), _INPUT_STEP)
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
    if dilation < 1:
        raise ValueError(f"dilation is {dilation}: use 1 or more.")
    check_convolution(
        "winograd_convolution", x, weight, bias, other, input_step=_INPUT_STEP, planes=(16,)
    )


_PROBLEM = "Tensor x, Tensor weight, Tensor bias, SymInt dilation, bool relu"
_operation = define(
    f"winograd_convolution({_PROBLEM}) -> Tensor",
    reference.winograd_convolution,
    lambda x, weight, bias, dilation, relu: empty_outputs(x, bias, 1),
)
_in_place = define(
    f"winograd_convolution_(Tensor(a!) other, {_PROBLEM}) -> ()",
    reference.winograd_convolution_,
    lambda other, x, weight, bias, dilation, relu: None,
)
TORCH_ELSEWHERE.update({"winograd_convolution", "winograd_convolution_"})

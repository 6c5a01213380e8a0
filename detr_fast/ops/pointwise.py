"""1x1 convolutions and linear layers with bias, sum and ReLU, by kernels for all sizes."""

from torch import Tensor

from ..reference import pointwise as reference
from ..reference.packed import in_word, packed
from ._convolution import check_convolution, check_weight, empty_outputs, kernel_is_faster
from ._library import TORCH_ELSEWHERE, define


def pointwise_is_faster(
    x: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> bool:
    """Whether `pointwise_convolution` or `pointwise_linear` computes a product faster than torch.

    They do in the `FASTER_DTYPES` of this CPU. Over the 1x1 convolutions of DETR-R50 they take 0.75
    to 0.9 of oneDNN's time, the less the busier the memory is (two cores of an AMD EPYC, Zen 5);
    other CPUs were not measured.

    Args:
        x: (B, I, H, W) for a convolution, (..., I) for a linear layer.
        weight: (O, I, h, w) or (O, I), not packed.
        stride, padding: of a convolution, down and to the right.
    """
    return (
        tuple(weight.shape[2:]) in ((1, 1), ())
        and stride[0] == stride[1]
        and tuple(padding) == (0, 0)
        and kernel_is_faster(x, weight, in_word(x.dtype))
    )


def pointwise_weight(weight: Tensor) -> Tensor:
    """Packs the weights of a 1x1 convolution or linear layer for the functions below.

    Args:
        weight: (O, I, 1, 1) or (O, I), floating point; O a multiple of 64 and I, in 16 bits, of 2.

    Returns:
        A tensor of the dtype and size of `weight`, in an order of its own.

    Raises:
        TypeError: `weight` is not floating point.
        ValueError: a shape that does not fit.
    """
    check_weight(weight, (1, 1) if weight.ndim == 4 else (), in_word(weight.dtype))
    return packed(weight.flatten(1))


def pointwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, relu: bool = False
) -> Tensor:
    """`relu(conv2d(x) + bias)`, 1x1, without padding.

    Sums are in float32 or wider and rounded once. On a CPU with a kernel for the dtype what a pixel
    gives depends neither on the others nor on the number of threads. Not differentiable.

    Args:
        x: (B, I, H, W), floating point; fastest where channels last.
        weight: what `pointwise_weight` gives, in the dtype of `x`.
        bias: (O,) in that dtype.
        stride: of rows and columns.
        relu: whether negative results become 0.

    Returns:
        (B, O, H', W'), channels last, with sides a `stride`-th of those of `x`, rounded up.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes or devices that do not fit, or a stride below 1.
        RuntimeError: an argument takes part in a computation whose gradient is recorded.
    """
    _check(x, weight, bias, stride)
    return _operation(x, weight, bias, stride, relu)


def pointwise_convolution_(
    other: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, relu: bool = False
) -> Tensor:
    """`relu(conv2d(x) + bias + other)`, written to `other`.

    Args:
        other: (B, O, H', W') in the dtype of `x`, of which it shares no memory; fastest where
            channels last.
        x, weight, bias, stride, relu: as in `pointwise_convolution`.

    Returns:
        `other`.

    Raises:
        TypeError, ValueError, RuntimeError: as `pointwise_convolution`.
    """
    _check(x, weight, bias, stride, other)
    _in_place(other, x, weight, bias, stride, relu)
    return other


def pointwise_linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """`relu(linear(x) + bias)`, (..., I) -> (..., O): a convolution of an image of one row.

    Args:
        x: of at least one dimension; fastest where contiguous.
        weight, bias, relu: as in `pointwise_convolution`.

    Raises:
        TypeError, ValueError, RuntimeError: as `pointwise_convolution`.
    """
    out = pointwise_convolution(_as_image(x), weight, bias, 1, relu)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], bias.shape[0])


def pointwise_linear_(
    other: Tensor, x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False
) -> Tensor:
    """`relu(linear(x) + bias + other)`, written to `other`.

    Args:
        other: (..., O), contiguous, in the dtype of `x`, of which it shares no memory.
        x, weight, bias, relu: as in `pointwise_linear`.

    Returns:
        `other`.

    Raises:
        TypeError, ValueError, RuntimeError: as `pointwise_convolution`; also for an `other` that is
            not contiguous.
    """
    if other.shape[:-1] != x.shape[:-1] or not other.is_contiguous():
        raise ValueError(
            f"other has shape {tuple(other.shape)}{'' if other.is_contiguous() else ' and gaps'}: "
            f"x {tuple(x.shape)} needs {(*x.shape[:-1], bias.shape[0])}, contiguous."
        )
    pointwise_convolution_(_as_image(other), _as_image(x), weight, bias, 1, relu)
    return other


def _as_image(x: Tensor) -> Tensor:
    """(..., C) as (1, C, 1, rows), channels last; a view where `x` is contiguous."""
    return x.reshape(1, 1, x.shape[:-1].numel(), x.shape[-1]).permute(0, 3, 1, 2)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, other: Tensor | None = None
) -> None:
    if stride < 1:
        raise ValueError(f"stride is {stride}: use 1 or more.")
    step = in_word(x.dtype)
    check_convolution(
        "pointwise_convolution", x, weight, bias, other, input_step=step, stride=stride
    )


_PROBLEM = "Tensor x, Tensor weight, Tensor bias, SymInt stride, bool relu"
_operation = define(
    f"pointwise_convolution({_PROBLEM}) -> Tensor",
    reference.pointwise_convolution,
    lambda x, weight, bias, stride, relu: empty_outputs(x, bias, stride),
)
_in_place = define(
    f"pointwise_convolution_(Tensor(a!) other, {_PROBLEM}) -> ()",
    reference.pointwise_convolution_,
    lambda other, x, weight, bias, stride, relu: None,
)
TORCH_ELSEWHERE.update({"pointwise_convolution", "pointwise_convolution_"})

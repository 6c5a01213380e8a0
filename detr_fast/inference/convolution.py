"""Convolution, normalisation, sum and ReLU in one kernel, with weights in any floating type."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..ops.pointwise import (
    pointwise_convolution,
    pointwise_convolution_,
    pointwise_is_faster,
    pointwise_weight,
)
from ..ops.winograd import (
    winograd_convolution,
    winograd_convolution_,
    winograd_is_faster,
    winograd_weight,
)
from .packed import PackedWeights, onednn_takes

Norm = FrozenBatchNorm2d | nn.BatchNorm2d

_GROUPS = 1


class FusedConvolution(PackedWeights):
    """`relu(norm(conv(x)) + other)` of trained modules that change no more.

    The normalisation is folded into weight and bias in float64, so that folding costs no precision
    beyond the final type. cuDNN on a GPU; on a CPU own kernels for 3x3, by Winograd's way, and 1x1
    where those are faster, else oneDNN; where torch has neither, its own convolution, sum and ReLU
    one after another.

    Args:
        conv: as `folded` takes it.
        norm: what follows it, in evaluation mode.
        relu: whether a ReLU follows.
        dtype: of the weights and of what comes in and goes out.

    Raises:
        ValueError: as `folded`.
    """

    def __init__(self, conv: nn.Conv2d, norm: Norm, relu: bool, dtype: torch.dtype):
        super().__init__()
        weight, bias = folded(conv, norm)
        self.weight = nn.Buffer(weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.bias = nn.Buffer(bias.to(dtype))
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.relu = relu

    @property
    def geometry(self) -> tuple:
        """Stride, padding and dilation, each down and to the right."""
        return self.stride, self.padding, self.dilation

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Runs it.

        Args:
            x: (B, C, H, W), channels last.
            other: a summand like the output, which may be overwritten: on a CPU new memory costs
                more than the sum.

        Returns:
            (B, O, H', W'), channels last.
        """
        if x.is_cuda and self.relu:
            return self._by_cudnn(x, other)
        if winograd_is_faster(x, self.weight, *self.geometry):
            return self._by_winograd(x, other)
        if pointwise_is_faster(x, self.weight, self.stride, self.padding):
            return self._by_pointwise(x, other)
        if onednn_takes(x):
            return self._by_onednn(x, other)
        out = F.conv2d(x, self.weight, self.bias, *self.geometry)
        if other is not None:
            out += other
        return out.relu_() if self.relu else out

    def _by_cudnn(self, x: Tensor, other: Tensor | None) -> Tensor:
        arguments = (self.bias, *self.geometry, _GROUPS)
        if other is None:
            return torch.cudnn_convolution_relu(x, self.weight, *arguments)
        return torch.cudnn_convolution_add_relu(x, self.weight, other, 1.0, *arguments)

    def _by_winograd(self, x: Tensor, other: Tensor | None) -> Tensor:
        weight = self.packed_for_all_sizes(lambda: winograd_weight(self.weight))
        arguments = (x, weight, self.bias, self.dilation[0], self.relu)
        if other is None:
            return winograd_convolution(*arguments)
        return winograd_convolution_(other, *arguments)

    def _by_pointwise(self, x: Tensor, other: Tensor | None) -> Tensor:
        weight = self.packed_for_all_sizes(lambda: pointwise_weight(self.weight))
        arguments = (x, weight, self.bias, self.stride[0], self.relu)
        if other is None:
            return pointwise_convolution(*arguments)
        return pointwise_convolution_(other, *arguments)

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        form = (self.padding, self.stride, self.dilation, _GROUPS)
        weight = self.packed_for_size(
            x.shape,
            lambda: torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.to_mkldnn(), *form, x.shape
            ),
        )
        arguments = (weight, self.bias, *form)
        unary = "relu" if self.relu else None
        if other is None:
            convolve = torch.ops.mkldnn._convolution_pointwise
            return convolve(x, *arguments, unary or "none", [], "")
        add_convolved = torch.ops.mkldnn._convolution_pointwise_.binary
        return add_convolved(other, x, *arguments, "add", 1.0, unary, [], None)


@torch.no_grad()
def folded(conv: nn.Conv2d, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight (O, I, h, w) and bias (O,) in float64 of a convolution and the norm behind it.

    Raises:
        ValueError: the convolution has a bias, groups, or a padding other than a number of zeros.
    """
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if conv.bias is not None or conv.groups != _GROUPS or not zeros:
        raise ValueError(
            f"cannot fold {conv}: it has a bias, groups, or a padding other than a number of zeros"
        )
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * scale
    return conv.weight.double() * scale[:, None, None, None], bias

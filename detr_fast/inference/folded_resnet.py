"""A trained ResNet as fused convolutions."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..models.padding import pair, stride_of, strided
from ..ops.resnet_stem import resnet_stem, resnet_stem_is_faster, resnet_stem_weight
from ..ops.zero_outside import zero_outside_
from .convolution import FusedConvolution
from .packed import PackedWeights


class FoldedResNet(nn.Module):
    """The features of `Backbone`, without gradients.

    Args:
        body: stem and stages under torchvision's names, as `Backbone.body`.
        dtype: of weights and activations.

    Raises:
        ValueError: a convolution that cannot be folded, or a stem whose stride down is not that to
            the right.
    """

    def __init__(self, body: nn.Sequential, dtype: torch.dtype):
        super().__init__()
        self.stem = _Stem(body, dtype)
        self.blocks = nn.ModuleList(
            _BLOCKS[type(block)](block, dtype) for stage in body[4:] for block in stage
        )

    def forward(self, images: Tensor, extents: Tensor | None) -> Tensor:
        """Runs the network.

        Args:
            images: (B, 3, H, W) in `dtype`, channels last, zero in the padding.
            extents: (B, 2) int64, rows and columns of each image, to give each the features that it
                has alone, see `models.padded_resnet`; None to let the padding in.

        Returns:
            Features (B, C, Hf, Wf), channels last.
        """
        x = self.stem(images, extents)
        if extents is not None:
            extents = strided(extents, self.stem.stride)
        for block in self.blocks:
            x = block(x, extents)
            if extents is not None:
                extents = strided(extents, block.stride)
        return x


class _Stem(PackedWeights):
    def __init__(self, body: nn.Sequential, dtype: torch.dtype):
        super().__init__()
        self.conv = FusedConvolution(body.conv1, body.bn1, True, dtype)
        self.pool = body.maxpool
        self.stride = stride_of(body.conv1) * stride_of(self.pool)

    def forward(self, images: Tensor, extents: Tensor | None) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        if resnet_stem_is_faster(images, weight, self.conv.geometry, _maximum(self.pool)):
            packed = self.packed_for_all_sizes(lambda: resnet_stem_weight(weight))
            return resnet_stem(images, packed, bias, extents)
        x = self.conv(images)
        if extents is not None:
            zero_outside_(x, strided(extents, self.conv.stride[0]))
        return self.pool(x)


def _maximum(pool: nn.Module) -> tuple | None:
    """What `resnet_stem_is_faster` asks of it; None where it is no maximum."""
    if not isinstance(pool, nn.MaxPool2d):
        return None
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return (*map(pair, sizes), pool.ceil_mode, pool.return_indices)


class _Bottleneck(nn.Module):
    def __init__(self, block: Bottleneck, dtype: torch.dtype):
        super().__init__()
        self.stride = block.stride
        self.conv1 = FusedConvolution(block.conv1, block.bn1, True, dtype)
        self.conv2 = FusedConvolution(block.conv2, block.bn2, True, dtype)
        self.conv3 = FusedConvolution(block.conv3, block.bn3, True, dtype)
        self.downsample = _downsample(block, dtype)

    def forward(self, x: Tensor, extents: Tensor | None) -> Tensor:
        out = self.conv1(x)
        if extents is not None:
            zero_outside_(out, extents)
        return self.conv3(self.conv2(out), self.downsample(x))


class _BasicBlock(nn.Module):
    def __init__(self, block: BasicBlock, dtype: torch.dtype):
        super().__init__()
        self.stride = block.stride
        self.conv1 = FusedConvolution(block.conv1, block.bn1, True, dtype)
        self.conv2 = FusedConvolution(block.conv2, block.bn2, True, dtype)
        self.downsample = _downsample(block, dtype)

    def forward(self, x: Tensor, extents: Tensor | None) -> Tensor:
        if extents is not None:
            zero_outside_(x, extents)
        out = self.conv1(x)
        if extents is not None:
            zero_outside_(out, strided(extents, self.stride))
        return self.conv2(out, self.downsample(x))


_BLOCKS = {Bottleneck: _Bottleneck, BasicBlock: _BasicBlock}


def _downsample(block: Bottleneck | BasicBlock, dtype: torch.dtype) -> nn.Module:
    if block.downsample is None:
        return nn.Identity()
    conv, norm = block.downsample
    return FusedConvolution(conv, norm, False, dtype)

"""A ResNet over a padded batch, in which every image gets the features that it gets alone.

Alone, an image is surrounded by the zeros that a convolution pads with. In a padded batch the
padding is zero only until the first normalisation adds its bias, and every convolution with a
kernel larger than 1 then pulls it into the image. Here it is made zero again before each of these,
which costs as much as the padding is large, not the feature map.
"""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..ops.zero_outside import zero_outside, zero_outside_
from .padding import stride_of, strided


def padded_resnet(body: nn.Sequential, images: Tensor, extents: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the stages of a torchvision ResNet.

    Args:
        body: stem and stages under torchvision's names, as `Backbone.body`.
        images: (B, 3, H, W), padded at the bottom and on the right, with anything.
        extents: (B, 2) int64 on the device of `images`, rows and columns of each image.

    Returns:
        Features (B, C, Hf, Wf), not zero outside of the images, and the extents on that grid.
    """
    x = body.conv1(_cleared(images, extents, in_place=False))
    x = body.relu(body.bn1(x))
    extents = strided(extents, stride_of(body.conv1))
    # The features are not negative here, so that zeros change no maximum.
    x = body.maxpool(_cleared(x, extents))
    extents = strided(extents, stride_of(body.maxpool))
    for stage in body[4:]:
        for block in stage:
            x = _BLOCKS[type(block)](block, x, extents)
            extents = strided(extents, block.stride)
    return x, extents


def _bottleneck(block: Bottleneck, x: Tensor, extents: Tensor) -> Tensor:
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(_cleared(out, extents))))
    return _joined(block, block.bn3(block.conv3(out)), x)


def _basic_block(block: BasicBlock, x: Tensor, extents: Tensor) -> Tensor:
    x = _cleared(x, extents)
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.bn2(block.conv2(_cleared(out, strided(extents, block.stride))))
    return _joined(block, out, x)


_BLOCKS = {Bottleneck: _bottleneck, BasicBlock: _basic_block}


def _joined(block: Bottleneck | BasicBlock, out: Tensor, x: Tensor) -> Tensor:
    out += x if block.downsample is None else block.downsample(x)
    return block.relu(out)


def _cleared(x: Tensor, extents: Tensor, in_place: bool = True) -> Tensor:
    if in_place and not (torch.is_grad_enabled() and x.requires_grad):
        return zero_outside_(x, extents)
    return zero_outside(x, extents)

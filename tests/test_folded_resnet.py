"""A folded ResNet: the features of the network that it is made of, however that begins."""

import copy

import pytest
import tolerances
import torch
from cpu_kernels import needs_kernel
from random_models import model_with_statistics
from torch import Tensor, nn

from detr_fast.inference.folded_resnet import FoldedResNet
from detr_fast.models.padded_resnet import padded_resnet
from detr_fast.ops.zero_outside import zero_outside

# What begins the network: the options of its first convolution, 7x7 and 64 channels wide, and what
# comes before the stages. The first two are ResNet's own.
RESNETS = {
    "numbers": ({"stride": 2, "padding": 3}, nn.MaxPool2d(3, 2, 1)),
    "pairs": ({"stride": 2, "padding": 3}, nn.MaxPool2d((3, 3), (2, 2), (1, 1), (1, 1))),
}
# These are padded so that n rows become n / stride, rounded up, as exact batches take for granted;
SAME = {
    "dense convolution": ({"stride": 1, "padding": 3}, nn.MaxPool2d(3, 2, 1)),
    "sparse convolution": ({"stride": 3, "padding": 3}, nn.MaxPool2d(3, 2, 1)),
    "dilated convolution": ({"stride": 2, "padding": 6, "dilation": 2}, nn.MaxPool2d(3, 2, 1)),
    "larger maximum": ({"stride": 2, "padding": 3}, nn.MaxPool2d((5, 5), (2, 2), 2)),
    "flat maximum": ({"stride": 2, "padding": 3}, nn.MaxPool2d((1, 3), 2, (0, 1))),
    "smaller maximum": ({"stride": 2, "padding": 3}, nn.MaxPool2d(2, ceil_mode=True)),
    "dense maximum": ({"stride": 2, "padding": 3}, nn.MaxPool2d(3, (1, 1), 1)),
    "no maximum": ({"stride": 2, "padding": 3}, nn.Identity()),
    "mean": ({"stride": 2, "padding": 3}, nn.AvgPool2d(3, 2, 1)),
}
# those below are not.
OTHERS = {
    "unpadded convolution": ({"stride": 2, "padding": 0}, nn.MaxPool2d(3, 2, 1)),
    "half padded convolution": ({"stride": 2, "padding": (3, 0)}, nn.MaxPool2d(3, 2, 1)),
    "unpadded maximum": ({"stride": 2, "padding": 3}, nn.MaxPool2d(3, 2)),
    "dilated maximum": ({"stride": 2, "padding": 3}, nn.MaxPool2d(3, 2, 1, dilation=2)),
    "rounded up": ({"stride": 2, "padding": 3}, nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
}
STEMS = RESNETS | SAME | OTHERS
EXTENTS = torch.tensor([[70, 83], [96, 40], [33, 96]])


def a_body(stem: str) -> nn.Sequential:
    options, pool = STEMS[stem]
    body = model_with_statistics("detr_tiny").backbone[0].body
    body.conv1 = nn.Conv2d(3, 64, 7, bias=False, **options)
    body.maxpool = copy.deepcopy(pool)
    return body


def some_images() -> Tensor:
    images = torch.randn(len(EXTENTS), 3, 96, 96)
    return zero_outside(images, EXTENTS).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
def test_features_are_those_of_the_network(stem):
    body, images = a_body(stem), some_images()
    features = FoldedResNet(body, torch.float32)(images, None)
    torch.testing.assert_close(features, body(images), rtol=0, atol=tolerances.FOLDED_FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("stem", RESNETS | SAME)
def test_images_in_a_batch_have_the_features_that_they_have_alone(stem):
    body, images = a_body(stem), some_images()
    together = FoldedResNet(body, torch.float32)(images, EXTENTS)
    expected, extents = padded_resnet(body, images, EXTENTS)
    for b, (height, width) in enumerate(EXTENTS.tolist()):
        alone = body(images[b : b + 1, :, :height, :width])[0]
        rows, columns = extents[b].tolist()
        assert alone.shape[1:] == (rows, columns)
        for batch in (together, expected):
            own = batch[b, :, :rows, :columns]
            torch.testing.assert_close(own, alone, rtol=0, atol=tolerances.FOLDED_FLOAT32)


@torch.no_grad()
@needs_kernel
@pytest.mark.parametrize("stem", STEMS)
def test_only_what_begins_like_a_resnet_begins_with_one_operation(stem):
    folded = FoldedResNet(a_body(stem), torch.float32)
    pooled = []
    folded.stem.pool.register_forward_hook(lambda *_: pooled.append(stem))
    folded(some_images(), None)
    assert pooled == ([] if stem in RESNETS else [stem])


def test_one_stride_down_and_another_to_the_right_are_refused():
    body = a_body("numbers")
    body.maxpool = nn.MaxPool2d((1, 3), (1, 2), (0, 1))
    with pytest.raises(ValueError, match=r"MaxPool2d.* must have the same stride down and to"):
        FoldedResNet(body, torch.float32)
    with pytest.raises(ValueError, match="must have the same stride"):
        padded_resnet(body, some_images(), EXTENTS)

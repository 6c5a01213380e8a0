"""The beginning of a ResNet: kernel and reference against torch's operations in float64."""

import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import (
    OFF,
    any_dtype,
    assert_ignores_batch,
    assert_ignores_threads,
    assert_kernel_where_wanted,
    assert_within_bound,
    capabilities,
    compiled_dtypes,
    integers,
    needs_kernel,
)
from torch import Tensor

from detr_fast.ops.resnet_stem import resnet_stem, resnet_stem_is_faster, resnet_stem_weight
from detr_fast.reference import resnet_stem as reference
from detr_fast.reference.zero_outside import zero_outside

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# (B, O, H, W): less than a kernel, all rests of a division by four, tiles and bands that end within
# an image.
SHAPES = [
    (1, 64, 1, 1),
    (2, 64, 3, 2),
    (3, 64, 5, 14),
    (1, 128, 22, 27),
    (2, 64, 71, 48),
    (1, 64, 16, 101),
]


def expected(images, weight, bias, extents=None) -> Tensor:
    """torch's own, in float64."""
    images, weight, bias = images.double(), weight.double(), bias.double()
    convolved = F.conv2d(images, weight, bias, 2, 3).relu()
    if extents is not None:
        convolved = zero_outside(convolved, (extents + 1) // 2)
    return F.max_pool2d(convolved, 3, 2, 1)


def some_extents(images: int, height: int, width: int) -> Tensor:
    """Whole images, parts, one that is padding altogether, and more than there is."""
    sides = [(height, width), (height // 2, width - width // 3), (0, 0), (height + 9, width + 1)]
    return torch.tensor([sides[(b + 1) % len(sides)] for b in range(images)])


def exact_problem(shape, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Integers whose sums no step rounds but, in 16 bits, the last."""
    images, outputs, height, width = shape
    x = integers((images, 3, height, width), 3, dtype)
    return (
        x.contiguous(memory_format=torch.channels_last),
        integers((outputs, 3, 7, 7), 2, dtype),
        integers((outputs,), 9, dtype),
    )


@any_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_numbers_are_exact(shape, dtype):
    """Numbers that no step rounds, so that a misplaced one cannot hide behind a tolerance."""
    x, weight, bias = exact_problem(shape, dtype)
    packed = resnet_stem_weight(weight)
    for extents in (None, some_extents(shape[0], *shape[2:])):
        out = resnet_stem(x, packed, bias, extents)
        assert torch.equal(out, expected(x, weight, bias, extents).to(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(reference.resnet_stem(x, packed, bias, extents), out)


@any_dtype
def test_no_images(dtype):
    x, weight, bias = exact_problem((0, 64, 4, 5), dtype)
    assert resnet_stem(x, resnet_stem_weight(weight), bias).shape == (0, 64, 1, 2)


def random_problem(shape, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of results of order one."""
    images, outputs, height, width = shape
    x = torch.randn(images, 3, height, width).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, 3, 7, 7) / 147**0.5
    return x.to(dtype), weight.to(dtype), torch.randn(outputs).to(dtype)


@compiled_dtypes
def test_every_result_is_within_its_bound(dtype):
    """Sums of 147 products and a bias, 148 additions.

    Products of two bfloat16 are exact in float32; those of two float32 are not rounded before they
    are added. A maximum is off by no more than the largest of its arguments.
    """
    x, weight, bias = random_problem((1, 64, 60, 71), dtype)
    out = resnet_stem(x, resnet_stem_weight(weight), bias)
    wanted = expected(x, weight, bias)
    terms = expected(x.abs(), weight.abs(), bias.abs())
    assert_within_bound(out, wanted, terms, OFF[torch.float32] * 148)


@compiled_dtypes
def test_ignores_batch_and_threads(dtype):
    x, weight, bias = random_problem((3, 64, 75, 58), dtype)
    packed = resnet_stem_weight(weight)

    def run(x):
        return resnet_stem(x, packed, bias)

    assert_ignores_batch(run, x)
    assert_ignores_threads(lambda: run(x), run(x))


@compiled_dtypes
def test_an_image_on_a_canvas_is_the_image_alone(dtype):
    x, weight, bias = random_problem((1, 64, 37, 42), dtype)
    packed = resnet_stem_weight(weight)
    alone = resnet_stem(x, packed, bias)
    padded = F.pad(x, (0, 9, 0, 30)).contiguous(memory_format=torch.channels_last)
    out = resnet_stem(padded, packed, bias, torch.tensor([[37, 42]]))
    assert torch.equal(out[..., :10, :11], alone)


@any_dtype
def test_takes_any_strides(dtype):
    x, weight, bias = exact_problem((2, 64, 18, 23), dtype)
    packed, extents = resnet_stem_weight(weight), some_extents(2, 18, 23)
    wanted = resnet_stem(x, packed, bias, extents)
    cut = F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1]
    for same in (x.contiguous(), cut, x.mT.contiguous().mT):
        assert torch.equal(resnet_stem(same, packed, bias, extents), wanted)
    spread = bias.repeat_interleave(2)[::2]
    turned = extents.T.contiguous().T
    assert torch.equal(resnet_stem(x, packed.mT.contiguous().mT, spread, turned), wanted)


@compiled_dtypes
def test_nan_is_not_lost(dtype):
    """Every maximum that has NaN among its arguments is NaN, and no other but its neighbours."""
    x, weight, bias = random_problem((1, 64, 64, 64), dtype)
    for y, column in ((30, 33), (0, 0), (63, 63)):
        spoiled = x.clone()
        spoiled[0, 1, y, column] = torch.nan
        out = resnet_stem(spoiled, resnet_stem_weight(weight), bias).isnan()
        wanted = expected(spoiled, weight, bias).isnan()
        assert out[wanted].all()
        assert not out[~F.max_pool2d(wanted.double(), 3, 1, 1).bool()].any()


@any_dtype
def test_opcheck(dtype):
    x, weight, bias = exact_problem((2, 64, 9, 10), dtype)
    packed = resnet_stem_weight(weight)
    for extents in (None, some_extents(2, 9, 10)):
        torch.library.opcheck(torch.ops.detr_fast.resnet_stem.default, (x, packed, bias, extents))


@any_dtype
@torch.no_grad()
def test_stands_in_a_graph(dtype):
    torch.compiler.reset()
    compiled = torch.compile(resnet_stem, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, size in enumerate(((9, 14), (22, 31), (40, 17))):
        x, weight, bias = exact_problem((2 + i, 64, *size), dtype)
        arguments = (x, resnet_stem_weight(weight), bias, some_extents(2 + i, *size))
        with torch.compiler.set_stance("default" if i < 2 else "fail_on_recompile"):
            out = compiled(*arguments)
        assert torch.equal(out, resnet_stem(*arguments))


@needs_kernel
def test_is_chosen_for_what_it_computes():
    images, weight = torch.zeros(1, 3, 9, 9), torch.zeros(64, 3, 7, 7)
    one, two, three = (1, 1), (2, 2), (3, 3)
    convolution, maximum = (two, three, one), (three, two, one, one, False, False)
    assert resnet_stem_is_faster(images, weight, convolution, maximum)
    for other in (
        (images, weight[:32]),
        (images, weight[..., :3, :3]),
        (images[:, :1], weight[:, :1]),
        (images.to("meta"), weight.to("meta")),
        (images.double(), weight.double()),
        (images.half(), weight.half()),
        (images, weight.bfloat16()),
    ):
        assert not resnet_stem_is_faster(*other, convolution, maximum)
    for other in ((one, three, one), (two, two, one), (two, three, two), ((2, 1), three, one)):
        assert not resnet_stem_is_faster(images, weight, other, maximum)
    for other in (
        None,
        (two, two, one, one, False, False),
        (three, one, one, one, False, False),
        (three, two, (1, 0), one, False, False),
        (three, two, one, two, False, False),
        (three, two, one, one, True, False),
        (three, two, one, one, False, True),
    ):
        assert not resnet_stem_is_faster(images, weight, convolution, other)


@needs_kernel
@capabilities
def test_no_kernel_where_the_instructions_are_not_wanted(capability, kernel, tmp_path):
    code = """
from detr_fast.ops.resnet_stem import resnet_stem, resnet_stem_is_faster, resnet_stem_weight
from detr_fast.reference.resnet_stem import CONVOLUTION, MAXIMUM
x, weight = torch.ones(1, 3, 9, 9), torch.ones(64, 3, 7, 7)
assert resnet_stem_is_faster(x, weight, CONVOLUTION, MAXIMUM) == kernel
assert resnet_stem(x, resnet_stem_weight(weight), torch.ones(64)).max() == 148
"""
    assert_kernel_where_wanted("resnet_stem", capability, kernel, code, tmp_path)


def test_what_does_not_fit_is_explained():
    x, weight, bias = exact_problem((2, 64, 9, 10), torch.float32)
    packed, extents = resnet_stem_weight(weight), some_extents(2, 9, 10)
    for wrong in (weight[:40], weight[:, :2], weight[..., :6], weight.repeat(1, 2, 1, 1)):
        with pytest.raises(ValueError, match=r"weight has shape .*: expected"):
            resnet_stem_weight(wrong)
    with pytest.raises(TypeError, match=r"weight has dtype torch.int64"):
        resnet_stem_weight(weight.long())
    with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
        resnet_stem(x.long(), packed, bias)
    with pytest.raises(TypeError, match=r"bias has dtype torch.float64, x torch.float32"):
        resnet_stem(x, packed, bias.double())
    with pytest.raises(TypeError, match=r"extents have dtype torch.int32: use int64"):
        resnet_stem(x, packed, bias, extents.int())
    for wrong in (x[0], x[:, :1], x[:, :, :0]):
        with pytest.raises(ValueError, match=r"x has shape .*: expected \(B, 3, H, W\)"):
            resnet_stem(wrong, packed, bias)
    with pytest.raises(ValueError, match="weight has shape"):
        resnet_stem(x, weight, bias)
    with pytest.raises(ValueError, match=r"bias has shape \(63,\).* need \(64,\)"):
        resnet_stem(x, packed, bias[1:])
    with pytest.raises(ValueError, match=r"extents have shape \(1, 2\): expected \(2, 2\)"):
        resnet_stem(x, packed, bias, extents[:1])
    with pytest.raises(ValueError, match="bias is on meta"):
        resnet_stem(x, packed, bias.to("meta"))
    with pytest.raises(RuntimeError, match="not differentiable"):
        resnet_stem(x.requires_grad_(), packed, bias)

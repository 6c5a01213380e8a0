"""1x1 convolutions and linear layers: the kernel and its reference against torch's in float64."""

import pytest
import tolerances
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

from detr_fast.ops._convolution import FASTER_DTYPES
from detr_fast.ops.pointwise import (
    pointwise_convolution,
    pointwise_convolution_,
    pointwise_is_faster,
    pointwise_linear,
    pointwise_linear_,
    pointwise_weight,
)
from detr_fast.reference import packed
from detr_fast.reference import pointwise as reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# (B, I, O, H, W): fewer pixels than are multiplied at once, lines of inputs that are not full,
# blocks of pixels that end within a row and within an image, one word and more than a line of them.
SHAPES = [
    (1, 2, 64, 1, 1),
    (1, 16, 64, 2, 3),
    (2, 34, 64, 5, 1),
    (3, 16, 128, 7, 10),
    (1, 130, 192, 9, 6),
    (2, 64, 64, 13, 17),
    (1, 32, 256, 33, 50),
]


def sides(height: int, width: int, stride: int) -> tuple[int, int]:
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def exact_problem(shape, stride, dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and summand of which every step but the last is exact in every dtype: sums of
    130 products up to 6 stay below 2^11."""
    images, inputs, outputs, height, width = shape
    x = integers((images, inputs, height, width), 3, dtype)
    other = integers((images, outputs, *sides(height, width, stride)), 9, dtype)
    last = torch.channels_last
    return (
        x.contiguous(memory_format=last),
        integers((outputs, inputs, 1, 1), 2, dtype),
        integers((outputs,), 9, dtype),
        other.contiguous(memory_format=last),
    )


def convolved(x, weight, bias, stride, relu, other=None) -> Tensor:
    """torch's own, in float64."""
    result = F.conv2d(x.double(), weight.double(), bias.double(), stride)
    if other is not None:
        result += other.double()
    return result.relu() if relu else result


@any_dtype
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_numbers_are_exact(shape, stride, dtype):
    """Numbers that no step rounds, so that a misplaced one cannot hide behind a tolerance."""
    x, weight, bias, other = exact_problem(shape, stride, dtype)
    laid_out = pointwise_weight(weight)
    assert torch.equal(packed.unpacked(laid_out), weight[..., 0, 0])
    for relu in (False, True):
        arguments = (x, laid_out, bias, stride, relu)
        out = pointwise_convolution(*arguments)
        assert torch.equal(out, convolved(x, weight, bias, stride, relu).to(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last)
        wanted = convolved(x, weight, bias, stride, relu, other).to(dtype)
        summed = other.clone()
        assert pointwise_convolution_(summed, *arguments) is summed
        assert torch.equal(summed, wanted)
        assert torch.equal(reference.pointwise_convolution(*arguments), out)


@any_dtype
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 100), (3, 1, 41), (0, 7)], ids=str)
def test_linear_layers_are_exact(shape, relu, dtype):
    x = integers((*shape, 48), 3, dtype)
    weight, bias = integers((128, 48), 2, dtype), integers((128,), 9, dtype)
    out = pointwise_linear(x, pointwise_weight(weight), bias, relu)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    assert torch.equal(out, (wanted.relu() if relu else wanted).to(dtype))
    assert out.is_contiguous()
    other = integers((*shape, 128), 9, dtype)
    wanted += other.double()
    summed = pointwise_linear_(other, x, pointwise_weight(weight), bias, relu)
    assert summed is other
    assert torch.equal(summed, (wanted.relu() if relu else wanted).to(dtype))


@any_dtype
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(0, 16, 64, 4, 5), (2, 16, 64, 0, 5), (2, 16, 64, 4, 0)])
def test_nothing_to_do(shape, stride, dtype):
    images, inputs, outputs, height, width = shape
    x = torch.zeros(images, inputs, height, width, dtype=dtype)
    weight = pointwise_weight(torch.zeros(outputs, inputs, 1, 1, dtype=dtype))
    bias = torch.zeros(outputs, dtype=dtype)
    out = pointwise_convolution(x, weight, bias, stride)
    assert out.shape == (images, outputs, -(-height // stride), -(-width // stride))
    assert out.numel() == 0
    assert pointwise_convolution_(out, x, weight, bias, stride) is out


@any_dtype
def test_no_channels_leave_the_bias(dtype):
    x, bias = torch.zeros(1, 0, 3, 4, dtype=dtype), integers((64,), 9, dtype)
    out = pointwise_convolution(x, pointwise_weight(torch.zeros(64, 0, dtype=dtype)), bias)
    assert torch.equal(out, bias[:, None, None].expand(1, 64, 3, 4))


def random_problem(shape, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of results of order one."""
    images, inputs, outputs, height, width = shape
    x = torch.randn(images, inputs, height, width, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 1, 1, dtype=torch.float64) / inputs**0.5
    x, weight, bias = (t.to(dtype) for t in (x, weight, torch.randn(outputs)))
    return x.contiguous(memory_format=torch.channels_last), weight, bias


@compiled_dtypes
@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize("shape", [(1, 64, 64, 50, 67), (1, 2048, 64, 9, 11)], ids=str)
def test_every_result_is_within_its_bound(shape, summand, dtype):
    """The roundings that each term of a result goes through, added up at their largest.

    In float32 each product is rounded with its sum, in as many sums as there are channels; those of
    bias and summand follow. In bfloat16 the products are exact in float32 and two sums stand for
    each pair.
    """
    x, weight, bias = random_problem(shape, dtype)
    other = torch.randn(shape[0], shape[2], *shape[3:]).to(dtype) if summand else None
    arguments = (x, pointwise_weight(weight), bias)
    wanted = convolved(x, weight, bias, 1, False, other)
    terms = convolved(
        x.abs(), weight.abs(), bias.abs(), 1, False, None if other is None else other.abs()
    )
    if summand:
        out = pointwise_convolution_(other.clone(), *arguments)
    else:
        out = pointwise_convolution(*arguments)
    assert_within_bound(out, wanted, terms, OFF[torch.float32] * (shape[1] + 2))


def test_the_reference_is_the_convolution():
    """In float64 without a kernel."""
    x, weight, bias = random_problem((2, 32, 64, 9, 11), torch.float64)
    out = pointwise_convolution(x, pointwise_weight(weight), bias, 2, True)
    wanted = convolved(x, weight, bias, 2, True)
    torch.testing.assert_close(out, wanted, rtol=0, atol=tolerances.POINTWISE_FLOAT64)


@compiled_dtypes
@pytest.mark.parametrize("stride", [1, 2])
def test_ignores_batch_and_threads(stride, dtype):
    """Seven threads and more divide the outputs, too."""
    x, weight, bias = random_problem((3, 32, 128, 23, 31), dtype)
    laid_out = pointwise_weight(weight)

    def run(x):
        return pointwise_convolution(x, laid_out, bias, stride)

    together = run(x)
    assert_ignores_batch(run, x)
    assert_ignores_threads(lambda: run(x), together)
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    few = pointwise_linear(rows[:40], laid_out, bias)
    assert_ignores_threads(lambda: pointwise_linear(rows[:40], laid_out, bias), few)
    assert_ignores_threads(lambda: pointwise_linear(rows, laid_out, bias)[:40], few)
    small, summand = x[:1, :, :5, :8], together[:1, :, :5, :8]

    def total():
        return pointwise_convolution_(summand.clone(), small, laid_out, bias)

    assert_ignores_threads(total, total())


@any_dtype
def test_takes_any_strides(dtype):
    x, weight, bias, other = exact_problem((2, 16, 64, 6, 7), 1, dtype)
    laid_out = pointwise_weight(weight)
    wanted = pointwise_convolution(x, laid_out, bias)
    sums = pointwise_convolution_(other.clone(), x, laid_out, bias)
    cut = F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1]
    for same in (x.contiguous(), cut, x.mT.contiguous().mT):
        assert torch.equal(pointwise_convolution(same, laid_out, bias), wanted)
    spread = bias.repeat_interleave(2)[::2]
    assert torch.equal(pointwise_convolution(x, laid_out, spread), wanted)
    mixed = laid_out.mT.contiguous().mT
    assert torch.equal(pointwise_convolution(x, mixed, bias), wanted)
    for same in (other.contiguous(), other.mT.contiguous().mT):
        assert pointwise_convolution_(same, x, laid_out, bias) is same
        assert torch.equal(same, sums)
    rows = x.permute(0, 2, 3, 1)
    for same in (rows.contiguous(), rows.repeat(1, 1, 2, 1)[:, :, :7], rows.mT.contiguous().mT):
        assert torch.equal(pointwise_linear(same, laid_out, bias), wanted.permute(0, 2, 3, 1))


@compiled_dtypes
def test_spreads_nan_to_its_pixel(dtype):
    x, weight, bias = random_problem((1, 16, 64, 12, 12), dtype)
    x[0, 3, 5, 6] = torch.nan
    out = pointwise_convolution(x, pointwise_weight(weight), bias, 1, True).isnan()
    assert out[..., 5, 6].all()
    assert out.sum() == 64


@any_dtype
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride, dtype):
    x, weight, bias, other = exact_problem((2, 16, 64, 5, 6), stride, dtype)
    arguments = (x, pointwise_weight(weight), bias, stride, True)
    operations = torch.ops.detr_fast
    torch.library.opcheck(operations.pointwise_convolution.default, arguments)
    torch.library.opcheck(operations.pointwise_convolution_.default, (other, *arguments))


@any_dtype
@torch.no_grad()
def test_stands_in_a_graph(dtype):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(x, weight, bias, other, stride):
        out = pointwise_convolution(x * 1, weight, bias, stride, True)
        summed = pointwise_convolution_(other.clone(), out, weight, bias)
        return pointwise_linear(summed.permute(0, 2, 3, 1), weight, bias)

    for i, (size, stride) in enumerate((((4, 5), 2), ((7, 10), 3), ((13, 17), 4))):
        x, weight, bias, other = exact_problem((2 + i, 64, 64, *size), stride, dtype)
        laid_out = pointwise_weight(weight / 64)
        with torch.compiler.set_stance("default" if i < 2 else "fail_on_recompile"):
            out = compiled(x, laid_out, bias, other, stride)
        first = pointwise_convolution(x, laid_out, bias, stride, True)
        second = pointwise_convolution_(other, first, laid_out, bias)
        assert torch.equal(out, pointwise_linear(second.permute(0, 2, 3, 1), laid_out, bias))


@needs_kernel
def test_is_chosen_for_what_it_computes():
    x, weight = torch.zeros(1, 64, 9, 9), torch.zeros(128, 64, 1, 1)
    one, two, none = (1, 1), (2, 2), (0, 0)
    assert pointwise_is_faster(x, weight, one, none)
    assert pointwise_is_faster(x, weight, two, none)
    assert pointwise_is_faster(torch.zeros(5, 64), weight[..., 0, 0])
    for other in (
        (x, weight, (1, 2), none),
        (x, weight, one, one),
        (x, weight.expand(128, 64, 3, 3), one, none),
        (x, weight[:100], one, none),
        (x.to("meta"), weight.to("meta"), one, none),
        (x.double(), weight.double(), one, none),
        (x.half(), weight.half(), one, none),
        (x, weight.double(), one, none),
    ):
        assert not pointwise_is_faster(*other)
    if torch.bfloat16 in FASTER_DTYPES:
        x, weight = x.bfloat16(), weight.bfloat16()
        assert pointwise_is_faster(x, weight, one, none)
        assert not pointwise_is_faster(x[:, :33], weight[:, :33], one, none)


@needs_kernel
@capabilities
def test_no_kernel_where_the_instructions_are_not_wanted(capability, kernel, tmp_path):
    code = """
from detr_fast.ops.pointwise import pointwise_convolution, pointwise_is_faster, pointwise_weight
x, weight = torch.ones(1, 16, 4, 4), torch.ones(64, 16, 1, 1)
assert pointwise_is_faster(x, weight) == kernel
assert pointwise_convolution(x, pointwise_weight(weight), torch.ones(64)).eq(17).all()
"""
    assert_kernel_where_wanted("pointwise_convolution", capability, kernel, code, tmp_path)


def test_what_does_not_fit_is_explained():
    x, weight, bias, other = exact_problem((2, 16, 64, 5, 6), 2, torch.float32)
    laid_out = pointwise_weight(weight)
    with pytest.raises(ValueError, match=r"\(O, I, 1, 1\), O a multiple of 64 and I of 1"):
        pointwise_weight(weight[:40])
    with pytest.raises(ValueError, match=r"\(O, I\), O a multiple of 64 and I of 2"):
        pointwise_weight(weight.bfloat16()[:, :3, 0, 0])
    for given in (weight.expand(64, 16, 3, 3), weight[..., 0], weight[0, 0, 0]):
        with pytest.raises(ValueError, match="weight has shape"):
            pointwise_weight(given)
    with pytest.raises(TypeError, match=r"weight has dtype torch.int64"):
        pointwise_weight(weight.long())
    with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
        pointwise_convolution(x.long(), laid_out, bias)
    with pytest.raises(TypeError, match=r"bias has dtype torch.float64, x torch.float32"):
        pointwise_convolution(x, laid_out, bias.double())
    with pytest.raises(ValueError, match="x has shape"):
        pointwise_convolution(x[0], laid_out, bias)
    with pytest.raises(ValueError, match=r"x has shape .* I a multiple of 2"):
        pointwise_convolution(x[:, :3].bfloat16(), laid_out.bfloat16(), bias.bfloat16())
    for given in ((x, weight, bias), (x, laid_out[:, 1:], bias), (x[:, 1:], laid_out, bias)):
        with pytest.raises(ValueError, match="weight has shape"):
            pointwise_convolution(*given)
    with pytest.raises(ValueError, match=r"bias has shape \(63,\).* need \(64,\)"):
        pointwise_convolution(x, laid_out, bias[1:])
    assert pointwise_convolution_(other, x, laid_out, bias, 2) is other
    with pytest.raises(ValueError, match=r"other has shape .* need \(2, 64, 5, 6\)"):
        pointwise_convolution_(other, x, laid_out, bias)
    rows, sums = x.permute(0, 2, 3, 1), torch.zeros(2, 5, 6, 64)
    with pytest.raises(ValueError, match=r"\(2, 5, 5, 64\): x \(2, 5, 6, 16\) needs .*, contig"):
        pointwise_linear_(sums[:, :, 1:].contiguous(), rows, laid_out, bias)
    with pytest.raises(ValueError, match=r"\(2, 5, 6, 64\) and gaps"):
        pointwise_linear_(sums.mT.contiguous().mT, rows, laid_out, bias)
    with pytest.raises(ValueError, match=r"other has shape"):
        pointwise_linear_(sums[..., 1:].contiguous(), rows, laid_out, bias)
    with pytest.raises(ValueError, match="bias is on meta"):
        pointwise_convolution(x, laid_out, bias.to("meta"))
    with pytest.raises(ValueError, match="stride is 0"):
        pointwise_convolution(x, laid_out, bias, 0)
    with pytest.raises(RuntimeError, match="pointwise_convolution is not differentiable"):
        pointwise_convolution(x.requires_grad_(), laid_out, bias)

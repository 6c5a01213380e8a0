"""Winograd's convolution: the kernel and its reference against torch's own in float64."""

import pytest
import tolerances
import torch
import torch.nn.functional as F
from cpu_kernels import (
    COMPILED,
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
from fresh_process import run_python
from torch import Tensor

from detr_fast.ops.winograd import (
    winograd_convolution,
    winograd_convolution_,
    winograd_is_faster,
    winograd_weight,
)
from detr_fast.reference import winograd as reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# (B, I, O, H, W): parts of tiles on every side, fewer tiles than are multiplied at once, blocks of
# tiles that end within a row and within an image.
SHAPES = [
    (1, 16, 64, 1, 1),
    (1, 16, 64, 2, 3),
    (2, 32, 64, 5, 1),
    (3, 16, 64, 7, 10),
    (1, 48, 128, 9, 6),
    (2, 64, 192, 13, 17),
    (1, 64, 64, 33, 50),
]


def exact_problem(shape, dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and summand of which every step but the last is exact in every dtype.

    Transformed inputs are integers up to 12, weights up to 18, of which 8 bits hold every one, and
    sums stay below 2^24 (2^11 in float16, whose sums are in float32, too).
    """
    images, inputs, outputs, height, width = shape
    x = integers((images, inputs, height, width), 3, dtype)
    weight = 4 * integers((outputs, inputs, 3, 3), 2, dtype)
    other = integers((images, outputs, height, width), 9, dtype)
    last = torch.channels_last
    return (
        x.contiguous(memory_format=last),
        weight,
        integers((outputs,), 9, dtype),
        other.contiguous(memory_format=last),
    )


def convolved(x, weight, bias, dilation, relu, other=None) -> Tensor:
    """torch's own, in float64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    result = F.conv2d(x, weight, bias, 1, dilation, dilation)
    if other is not None:
        result += other.double()
    return result.relu() if relu else result


@any_dtype
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_numbers_are_exact(shape, dilation, dtype):
    """Numbers that no step rounds, so that a misplaced one cannot hide behind a tolerance."""
    x, weight, bias, other = exact_problem(shape, dtype)
    transformed = winograd_weight(weight)
    for relu in (False, True):
        out = winograd_convolution(x, transformed, bias, dilation, relu)
        assert torch.equal(out, convolved(x, weight, bias, dilation, relu).to(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last)
        wanted = convolved(x, weight, bias, dilation, relu, other).to(dtype)
        summed = other.clone()
        assert winograd_convolution_(summed, x, transformed, bias, dilation, relu) is summed
        assert torch.equal(summed, wanted)
        arguments = (x, transformed, bias, dilation, relu)
        assert torch.equal(reference.winograd_convolution(*arguments), out)


@any_dtype
@pytest.mark.parametrize("shape", [(0, 16, 64, 4, 5), (2, 16, 64, 0, 5), (2, 16, 64, 4, 0)])
def test_nothing_to_do(shape, dtype):
    x, weight, bias, other = exact_problem(shape, dtype)
    out = winograd_convolution(x, winograd_weight(weight), bias)
    assert out.shape == other.shape
    assert winograd_convolution_(other, x, winograd_weight(weight), bias).shape == other.shape


def random_problem(shape, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of results of order one."""
    images, inputs, outputs, height, width = shape
    x = torch.randn(images, inputs, height, width, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=torch.float64) / (9 * inputs) ** 0.5
    x, weight, bias = (t.to(dtype) for t in (x, weight, torch.randn(outputs)))
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def with_matrices(x: Tensor, weight: Tensor, dilation: int, of_entry) -> Tensor:
    """Winograd's formula in float64 with `of_entry` of every entry of its matrices."""
    inputs, weights, outputs = (
        of_entry(torch.tensor(matrix, dtype=torch.float64))
        for matrix in (reference.INPUTS, reference.WEIGHTS, reference.OUTPUTS)
    )
    of_x = inputs @ reference.tiles(x, dilation) @ inputs.mT
    of_weight = weights @ weight @ weights.mT
    return combined(of_x, of_weight, outputs, x.shape[2:])


def combined(of_x: Tensor, of_weight: Tensor, outputs: Tensor, size) -> Tensor:
    products = torch.einsum("bcpqyxij,ocij->bopqyxij", of_x, of_weight)
    return reference.image(outputs @ products @ outputs.mT, *size)


ACCURATE = [(1, 64, 64, 50, 67), (1, 512, 64, 9, 11)]


@compiled_dtypes
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("shape", ACCURATE, ids=str)
def test_every_result_is_within_its_bound(shape, dilation, dtype):
    """The roundings that each term of a result goes through, added up at their largest.

    With |A|, |B| and |G| in place of A, B and G and the magnitudes of inputs and weights, the
    formula gives what the magnitudes of all terms of a result add up to. Each term is rounded with
    its weight once; with its input in two sums and, in bfloat16, once more; in at most as many sums
    as there are channels; in four sums of the last transform and that of the bias.
    """
    x, weight, bias = random_problem(shape, dtype)
    out = winograd_convolution(x, winograd_weight(weight), bias, dilation)
    wanted = convolved(x, weight, bias, dilation, False)
    terms = with_matrices(x.double().abs(), weight.double().abs(), dilation, torch.abs)
    terms += bias.double().abs()[:, None, None]
    of_sums = OFF[torch.float32] * (2 + shape[1] + 4 + 1)
    of_dtype = OFF[dtype] * (2 if dtype == torch.bfloat16 else 1)
    assert_within_bound(out, wanted, terms, of_dtype + of_sums)


@pytest.mark.skipif(torch.bfloat16 not in COMPILED, reason="no kernel for bfloat16 on this CPU")
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("shape", ACCURATE, ids=str)
def test_bf16_is_as_accurate_as_its_roundings(shape, dilation):
    """In the root mean square, where errors add up like a random walk.

    A rounding to p bits is off by 0.41 * 2^-p in the root mean square, see `inference.verify`.
    Rounded are every transformed input, every transformed weight and every result, while sums in
    float32 count for nothing; the mean of so many squares is within a few percent of what is
    expected of it.
    """
    x, weight, bias = random_problem(shape, torch.bfloat16)
    out = winograd_convolution(x, winograd_weight(weight), bias, dilation)
    wanted = convolved(x, weight, bias, dilation, False)
    inputs, weights, outputs = (
        torch.tensor(matrix, dtype=torch.float64)
        for matrix in (reference.INPUTS, reference.WEIGHTS, reference.OUTPUTS)
    )
    of_x = inputs @ reference.tiles(x.double(), dilation) @ inputs.mT
    of_weight = weights @ weight.double() @ weights.mT
    squares = combined(of_x.square(), of_weight.square(), outputs.square(), x.shape[2:])
    expected = 0.41 * OFF[torch.bfloat16] * (2 * squares.mean() + wanted.square().mean()).sqrt()
    assert (out.double() - wanted).square().mean().sqrt() <= 1.05 * expected


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_formula_is_the_convolution(dilation):
    """In float64 without a kernel."""
    x, weight, bias = random_problem((2, 32, 64, 9, 11), torch.float64)
    out = winograd_convolution(x, winograd_weight(weight), bias, dilation)
    wanted = convolved(x, weight, bias, dilation, False)
    torch.testing.assert_close(out, wanted, rtol=0, atol=tolerances.WINOGRAD_FLOAT64)


@compiled_dtypes
@pytest.mark.parametrize("dilation", [1, 2])
def test_ignores_batch_and_threads(dilation, dtype):
    x, weight, bias = random_problem((3, 32, 128, 23, 31), dtype)
    transformed = winograd_weight(weight)

    def run(x):
        return winograd_convolution(x, transformed, bias, dilation)

    assert_ignores_batch(run, x)
    assert_ignores_threads(lambda: run(x), run(x))


@compiled_dtypes
@pytest.mark.parametrize("dilation", [1, 2])
def test_zeros_around_an_image_change_nothing(dilation, dtype):
    """What makes exact batches exact to the last bit here."""
    x, weight, bias = random_problem((1, 32, 64, 13, 18), dtype)
    transformed = winograd_weight(weight)
    alone = winograd_convolution(x, transformed, bias, dilation)
    padded = F.pad(x, (0, 5, 0, 8)).contiguous(memory_format=torch.channels_last)
    out = winograd_convolution(padded, transformed, bias, dilation)
    assert torch.equal(out[..., :13, :18], alone)


@any_dtype
def test_takes_any_strides(dtype):
    x, weight, bias, other = exact_problem((2, 16, 64, 6, 7), dtype)
    transformed = winograd_weight(weight)
    wanted = winograd_convolution(x, transformed, bias)
    sums = winograd_convolution_(other.clone(), x, transformed, bias)
    cut = F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1]
    for same in (x.contiguous(), cut, x.mT.contiguous().mT):
        assert torch.equal(winograd_convolution(same, transformed, bias), wanted)
    spread = bias.repeat_interleave(2)[::2]
    assert torch.equal(winograd_convolution(x, transformed, spread), wanted)
    mixed = transformed.mT.contiguous().mT
    assert torch.equal(winograd_convolution(x, mixed, bias), wanted)
    for same in (other.contiguous(), other.mT.contiguous().mT):
        assert winograd_convolution_(same, x, transformed, bias) is same
        assert torch.equal(same, sums)


@compiled_dtypes
def test_spreads_nan(dtype):
    x, weight, bias = random_problem((1, 16, 64, 12, 12), dtype)
    x[0, 3, 5, 6] = torch.nan
    out = winograd_convolution(x, winograd_weight(weight), bias, 1, True).isnan()
    near = torch.zeros_like(out)
    near[..., 4:7, 5:8] = True
    assert out[near].all()
    # The tiles that read it, and no others.
    near[..., 4:8, 4:8] = True
    assert not out[~near].any()


@any_dtype
@pytest.mark.parametrize("dilation", [1, 2])
def test_opcheck(dilation, dtype):
    x, weight, bias, other = exact_problem((2, 16, 64, 5, 6), dtype)
    arguments = (x, winograd_weight(weight), bias, dilation, True)
    operations = torch.ops.detr_fast
    torch.library.opcheck(operations.winograd_convolution.default, arguments)
    torch.library.opcheck(operations.winograd_convolution_.default, (other, *arguments))


@any_dtype
@torch.no_grad()
def test_stands_in_a_graph(dtype):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(x, weight, bias, other, dilation):
        out = winograd_convolution(x * 1, weight, bias, dilation, True)
        return winograd_convolution_(other.clone(), out, weight, bias, dilation)

    for i, (size, dilation) in enumerate((((4, 5), 2), ((6, 7), 3), ((9, 4), 4))):
        x, weight, bias, other = exact_problem((2 + i, 64, 64, *size), dtype)
        transformed = winograd_weight(weight / 4)
        with torch.compiler.set_stance("default" if i < 2 else "fail_on_recompile"):
            out = compiled(x, transformed, bias, other, dilation)
        first = winograd_convolution(x, transformed, bias, dilation, True)
        assert torch.equal(out, winograd_convolution_(other, first, transformed, bias, dilation))


@needs_kernel
def test_is_chosen_for_what_it_computes():
    x, weight = torch.zeros(1, 64, 9, 9), torch.zeros(128, 64, 3, 3)
    one, two = (1, 1), (2, 2)
    assert winograd_is_faster(x, weight, one, one, one)
    assert winograd_is_faster(x, weight, one, two, two)
    for other in (
        (x, weight, two, one, one),
        (x, weight, one, (0, 0), one),
        (x, weight, one, one, two),
        (x, weight, one, (1, 2), (1, 2)),
        (x, weight[:, :, :1, :1], one, one, one),
        (x, weight[:100], one, one, one),
        (x[:, :40], weight[:, :40], one, one, one),
        (x.to("meta"), weight.to("meta"), one, one, one),
        (x.double(), weight.double(), one, one, one),
        (x.half(), weight.half(), one, one, one),
    ):
        assert not winograd_is_faster(*other)


@needs_kernel
@capabilities
def test_no_kernel_where_the_instructions_are_not_wanted(capability, kernel, tmp_path):
    code = """
from detr_fast.ops.winograd import winograd_convolution, winograd_is_faster, winograd_weight
x, weight, one = torch.ones(1, 16, 4, 4), torch.ones(64, 16, 3, 3), (1, 1)
assert winograd_is_faster(x, weight, one, one, one) == kernel
out = winograd_convolution(x, winograd_weight(weight), torch.ones(64))
assert out[..., 1:3, 1:3].eq(145).all()
"""
    assert_kernel_where_wanted("winograd_convolution", capability, kernel, code, tmp_path)


@needs_kernel
def test_bf16_is_left_to_amx(tmp_path):
    """By all operations for convolution."""
    code = "import torch; torch.cpu._is_amx_tile_supported = lambda: True\n"
    code += "from detr_fast.ops import _convolution\n"
    code += "assert _convolution.FASTER_DTYPES == {torch.float32}"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_does_not_fit_is_explained():
    x, weight, bias, other = exact_problem((2, 16, 64, 5, 6), torch.float32)
    packed = winograd_weight(weight)
    with pytest.raises(ValueError, match=r"weight has shape .* O a multiple of 64 and I of 16"):
        winograd_weight(weight[:40])
    with pytest.raises(ValueError, match="weight has shape"):
        winograd_weight(weight[:, :8])
    with pytest.raises(ValueError, match="weight has shape"):
        winograd_weight(weight[..., :1])
    with pytest.raises(TypeError, match=r"weight has dtype torch.int64"):
        winograd_weight(weight.long())
    with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
        winograd_convolution(x.long(), packed, bias)
    with pytest.raises(TypeError, match=r"bias has dtype torch.float64, x torch.float32"):
        winograd_convolution(x, packed, bias.double())
    for given in ((x[0], packed, bias), (x[:, :8], packed, bias)):
        with pytest.raises(ValueError, match="x has shape"):
            winograd_convolution(*given)
    for given in (
        (x, weight, bias),
        (x, packed[:, 1:], bias),
        (x.repeat(1, 2, 1, 1), packed, bias),
    ):
        with pytest.raises(ValueError, match="weight has shape"):
            winograd_convolution(*given)
    with pytest.raises(ValueError, match=r"bias has shape \(63,\).* need \(64,\)"):
        winograd_convolution(x, packed, bias[1:])
    with pytest.raises(ValueError, match=r"other has shape .* need \(2, 64, 5, 6\)"):
        winograd_convolution_(other[:1], x, packed, bias)
    with pytest.raises(ValueError, match="bias is on meta"):
        winograd_convolution(x, packed, bias.to("meta"))
    with pytest.raises(ValueError, match="dilation is 0"):
        winograd_convolution(x, packed, bias, 0)
    with pytest.raises(RuntimeError, match="not differentiable"):
        winograd_convolution(x.requires_grad_(), packed, bias)

"""zero_outside: exactly the padding, in every layout and type, with its gradient."""

import pytest
import torch
from device_checks import captured, no_waiting, require_kernel
from torch import Tensor

from detr_fast.ops.zero_outside import zero_outside, zero_outside_
from detr_fast.reference import zero_outside as reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "strided")
EXTENTS = ((5, 7), (3, 7), (5, 2), (0, 0), (1, 1), (9, 99))


def features(layout: str = "contiguous", dtype=torch.float32, device="cpu") -> Tensor:
    x = torch.randn(len(EXTENTS), 3, 5, 7).to(device, dtype)
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    return x.repeat_interleave(2, 3)[..., ::2] if layout == "strided" else x


def expected(x: Tensor) -> Tensor:
    """Written out image by image."""
    result = torch.zeros_like(x)
    for b, (rows, columns) in enumerate(EXTENTS):
        result[b, :, :rows, :columns] = x[b, :, :rows, :columns]
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_beyond_the_extents_and_nothing_else(dtype, layout):
    x, extents = features(layout, dtype), torch.tensor(EXTENTS)
    before = x.clone()
    out = zero_outside(x, extents)
    assert torch.equal(out, expected(before))
    assert torch.equal(x, before)
    assert torch.equal(reference.zero_outside(x, extents), out)
    assert zero_outside_(x, extents) is x
    assert torch.equal(x, out)
    reference.zero_outside_(before, extents)
    assert torch.equal(before, out)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_the_memory_format_is_kept(layout):
    x = features(layout)
    assert zero_outside(x, torch.tensor(EXTENTS)).stride() == x.stride()


def test_what_stands_outside_may_be_anything():
    x, extents = features(), torch.tensor(EXTENTS)
    poisoned = torch.where(expected(torch.ones_like(x)).bool(), x, torch.nan)
    poisoned[3, 0] = torch.inf
    assert torch.equal(zero_outside(poisoned, extents), expected(x))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing_to_do(shape):
    x = torch.ones(shape)
    assert zero_outside(x, torch.ones(shape[0], 2, dtype=torch.int64)).shape == shape


def test_gradient():
    x = features(dtype=torch.float64).requires_grad_()
    extents = torch.tensor(EXTENTS)
    torch.autograd.gradcheck(lambda x: zero_outside(x, extents), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    operations = torch.ops.detr_fast
    extents = torch.tensor(EXTENTS)
    torch.library.opcheck(
        operations.zero_outside.default, (features(layout).requires_grad_(), extents)
    )
    torch.library.opcheck(operations.zero_outside_.default, (features(layout), extents))


def test_compiles_without_graph_breaks_or_recompiles():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(x, extents):
        return zero_outside_(zero_outside(x * 2, extents) + 1, extents)

    for count in (4, 6):
        with torch.compiler.set_stance("default" if count == 4 else "fail_on_recompile"):
            x, extents = features()[:count], torch.tensor(EXTENTS)[:count]
            out = compiled(x, extents)
        inside = expected(torch.ones(features().shape))[:count] > 0
        assert torch.equal(out, torch.where(inside, x * 2 + 1, 0.0))


def test_in_place_is_refused_where_a_gradient_is_recorded():
    x = features().requires_grad_() * 1
    with pytest.raises(RuntimeError, match="use zero_outside"):
        zero_outside_(x, torch.tensor(EXTENTS))
    with torch.no_grad():
        zero_outside_(x, torch.tensor(EXTENTS))


@pytest.mark.parametrize("operation", [zero_outside, zero_outside_])
def test_wrong_arguments_are_explained(operation):
    x, extents = features(), torch.tensor(EXTENTS)
    for arguments, error, message in (
        ((x[0], extents), ValueError, r"shape \(3, 5, 7\): expected \(B, C, H, W\)"),
        ((x, extents[:2]), ValueError, r"\(2, 2\): expected \(6, 2\)"),
        ((x, extents.int()), TypeError, "torch.int32: use int64"),
        ((x.long(), extents), TypeError, "features has dtype torch.int64"),
        ((x, extents.to("meta")), ValueError, "extents are on meta, features on cpu"),
    ):
        with pytest.raises(error, match=message):
            operation(*arguments)


# --- on a GPU: what tests/native cannot show ------------------------------------------------------


@pytest.fixture
def cuda_kernel():
    require_kernel("zero_outside_")


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda_kernel")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_zeros_beyond_the_extents_and_nothing_else(dtype, layout):
    x, extents = features(layout, dtype, "cuda"), torch.tensor(EXTENTS)
    x[:, 0] = torch.nan
    before = x.cpu()
    found = zero_outside(x, extents.cuda()).cpu()
    assert torch.equal(x.isnan().cpu(), before.isnan())
    zero_outside_(x, extents.cuda())
    for result in (found, x.cpu()):
        torch.testing.assert_close(result, expected(before), rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda_kernel")
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_kernel_on_maps_of_a_network(layout):
    x = torch.randn(4, 256, 61, 83)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    extents = torch.tensor([[61, 83], [60, 83], [61, 21], [7, 9]])
    assert torch.equal(zero_outside(x.cuda(), extents.cuda()).cpu(), zero_outside(x, extents))


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda_kernel")
def test_kernel_follows_the_extents_in_a_graph_and_does_not_wait():
    x, extents = features("channels_last").cuda(), torch.tensor(EXTENTS).cuda()
    with no_waiting():
        zero_outside_(x, extents)
    graph, out = captured(lambda: zero_outside(x, extents))
    x.copy_(features())
    extents.copy_(extents.flip(0))
    graph.replay()
    assert torch.equal(out.cpu(), zero_outside(x.cpu(), extents.cpu()))

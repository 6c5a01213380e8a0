"""The compiled kernel of attention on CPUs, against the reference and torch's own operation."""

import math

import pytest
import tolerances
import torch
import torch.nn.functional as F
from cpu_kernels import (
    assert_ignores_threads,
    assert_kernel_where_wanted,
    capabilities,
    compiled_dtypes,
    needs_kernel,
)
from torch import Tensor

from detr_fast.ops.attention import attention
from detr_fast.reference import attention as reference

TOLERANCES = {
    torch.bfloat16: tolerances.ATTENTION_BFLOAT16,
    torch.float32: tolerances.ATTENTION_FLOAT32,
}
GRID = (4, 5)
EXTENTS = ((4, 5), (2, 3), (0, 0), (1, 9))


def problem(queries=7, head_size=16, dtype=torch.float32, grid=GRID, images=4):
    keys = grid[0] * grid[1]
    return tuple(
        torch.randn(images, 2, length, head_size).to(dtype) for length in (queries, keys, keys)
    )


def close(actual, wanted, atol):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=atol)


def run_kernel(*arguments, **options) -> Tensor:
    """The result, of which torch's own kernel had no part."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("torch's"))
        return attention(*arguments, **options)


def check(query, key, value, extents=None, grid=None):
    """Holds both outputs against the reference in float64."""
    out = run_kernel(query, key, value, extents, grid)
    columns = 1 if grid is None else grid[1]
    double = (x.double() for x in (query, key, value))
    wanted, sums = reference.attention(*double, extents, columns, 0.0, None)
    assert out.dtype == query.dtype
    assert out.transpose(1, 2).is_contiguous()
    close(out.double(), wanted, TOLERANCES[query.dtype])
    problem = (query, key, value, extents, columns, 0.0, None)
    same, logsumexp = torch.ops.detr_fast.attention(*problem)
    assert torch.equal(same, out)
    assert logsumexp.dtype == torch.float32
    close(logsumexp.double(), sums, tolerances.ATTENTION_FLOAT32)
    return out


@compiled_dtypes
@pytest.mark.parametrize("head_size", [16, 32, 48, 64, 80, 128])
def test_at_every_head_size(dtype, head_size):
    check(*problem(13, head_size, dtype))
    check(*problem(13, head_size, dtype), torch.tensor(EXTENTS), GRID)


@compiled_dtypes
@pytest.mark.parametrize("queries", [1, 7, 100, 850])
@pytest.mark.parametrize("keys", [1, 7, 100, 257, 850])
def test_at_every_length(dtype, queries, keys):
    check(*problem(queries, 32, dtype, grid=(1, keys), images=1))


@compiled_dtypes
def test_skips_the_padding(dtype):
    grid, extents = (25, 34), ((25, 34), (19, 34), (25, 21), (7, 5), (0, 3), (3, 0), (40, 50))
    query, key, value = problem(50, 32, dtype, grid, len(extents))
    out = check(query, key, value, torch.tensor(extents), grid)
    assert not out[4:6].any()
    for b, (rows, columns) in enumerate(extents):
        padding = torch.ones(grid, dtype=torch.bool)
        padding[:rows, :columns] = False
        key[b][:, padding.flatten()] = value[b][:, padding.flatten()] = math.nan
    assert torch.equal(run_kernel(query, key, value, torch.tensor(extents), grid), out)


@compiled_dtypes
def test_takes_any_strides(dtype):
    projected = torch.randn(3, 50, 96).to(dtype)
    q, k, v = (x.unflatten(-1, (2, 16)).transpose(1, 2) for x in projected.chunk(3, -1))
    wanted = check(*(x.clone(memory_format=torch.contiguous_format) for x in (q, k, v)))
    assert torch.equal(check(q, k, v), wanted)
    turned = (x.transpose(-2, -1).contiguous().transpose(-2, -1) for x in (q, k, v))
    assert torch.equal(check(*turned), wanted)
    odd = (torch.randn(1, 2, 9, 17).to(dtype)[..., 1:] for _ in range(3))
    check(*odd)
    one = torch.randn(1, 1, 1, 16).to(dtype).expand(2, 3, 20, 16)
    check(one, one, one)


@compiled_dtypes
def test_ignores_batch_and_threads(dtype):
    grid, extents = (25, 34), torch.tensor([(25, 34), (13, 30), (0, 0), (20, 34)])
    query, key, value = problem(850, 32, dtype, grid)
    together = run_kernel(query, key, value, extents, grid)
    for b in range(len(extents)):
        alone = (x[b : b + 1] for x in (query, key, value, extents))
        assert torch.equal(run_kernel(*alone, grid)[0], together[b])
    assert_ignores_threads(lambda: run_kernel(query, key, value, extents, grid), together)


@compiled_dtypes
@pytest.mark.parametrize("size", [1e2, 1e4, 1e18])
def test_with_large_scores(dtype, size):
    query, key, value = problem(20, 32, dtype, grid=(1, 600))
    query = (query.double() * size).to(dtype)
    out = run_kernel(query, key, value)
    scores = query.double() @ key.double().mT / math.sqrt(32)
    # Where the two highest are far enough apart, the result is the value of the highest.
    best = scores.topk(2, -1)
    clear = best.values[..., 0] - best.values[..., 1] > 40
    assert out.isfinite().all()
    assert clear.any()
    assert clear.all() or size < 1e18
    picked = value.gather(2, best.indices[..., :1].expand(-1, -1, -1, 32))
    close(out[clear].double(), picked[clear].double(), TOLERANCES[dtype])
    assert run_kernel(-query.abs(), key.abs(), value).isfinite().all()


@compiled_dtypes
def test_spreads_nan_as_the_formula_does(dtype):
    query, key, value = problem(20, 32, dtype, grid=(1, 600), images=3)
    query[0, 1, 7, 5] = key[1, 0, 590, 3] = math.nan
    value[2, 1, 599, 9] = math.nan
    out = run_kernel(query, key, value)
    wanted = reference.attention(*(x.double() for x in (query, key, value)), None, 1, 0.0, None)[0]
    assert torch.equal(out.isnan(), wanted.isnan())


@compiled_dtypes
def test_with_infinite_scores(dtype):
    query, key, value = problem(20, 32, dtype, grid=(1, 600), images=1)
    query[0, 0, 3] = 1
    key[0, 0, :400, 0] = -math.inf
    key[0, 1, :, 0] = 1
    query[0, 1, 5, 0] = -math.inf
    out = run_kernel(query, key, value)
    wanted = reference.attention(*(x.double() for x in (query, key, value)), None, 1, 0.0, None)[0]
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=TOLERANCES[dtype], equal_nan=True)
    assert wanted[0, 0, 3].isfinite().all()


@compiled_dtypes
def test_torch_runs_what_the_kernel_cannot(dtype, monkeypatch):
    seen = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **o: seen.append(1) or original(*a, **o)
    )
    query, key, value = problem(dtype=dtype)
    attention(query, key, value)
    assert not seen
    value.requires_grad_()
    attention(query, key, value).sum().backward()
    assert len(seen) == 1
    with torch.no_grad():
        attention(query, key, value)
        assert len(seen) == 1
        attention(query, key, value, dropout=0.5)
        attention(*problem(head_size=20, dtype=dtype))
        attention(*problem(dtype=torch.float64))
    assert len(seen) == 4


@compiled_dtypes
@pytest.mark.parametrize("padded", [True, False])
def test_opcheck_of_the_kernel(dtype, padded):
    extents = torch.tensor(EXTENTS) if padded else None
    arguments = (*problem(dtype=dtype), extents, GRID[1], 0.0, None)
    torch.library.opcheck(torch.ops.detr_fast.attention.default, arguments)


@compiled_dtypes
@torch.no_grad()
def test_stands_in_a_graph(dtype):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(query, key, value, extents, rows, columns):
        return attention(query * 1, key, value, extents, (rows, columns))

    for i, grid in enumerate(((4, 5), (6, 7), (3, 9))):
        inputs = problem(5 + i, grid=grid, dtype=dtype)
        with torch.compiler.set_stance("default" if i < 2 else "fail_on_recompile"):
            out = compiled(*inputs, torch.tensor(EXTENTS), *grid)
        assert torch.equal(out, attention(*inputs, torch.tensor(EXTENTS), grid))


@needs_kernel
@capabilities
def test_no_kernel_where_the_instructions_are_not_wanted(capability, kernel, tmp_path):
    code = "from detr_fast.ops import attention as a\n"
    code += "q = torch.ones(1, 1, 2, 16); assert a.attention(q, q, q).eq(1).all()\n"
    code += "assert bool(a._COMPILED_DTYPES) == kernel"
    assert_kernel_where_wanted("attention", capability, kernel, code, tmp_path)

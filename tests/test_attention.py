"""attention: its contract, its reference and gradient, and that its kernels compile everywhere.

The kernels themselves are held against the reference in test_attention_kernels.py, that of CPUs in
test_attention_cpu.py.
"""

import importlib.util
import math

import pytest
import tolerances
import torch
import torch.nn.functional as F
from fresh_process import run_python
from torch import Tensor

from detr_fast.models.attention import MultiheadAttention
from detr_fast.ops.attention import attention
from detr_fast.reference import attention as reference
from detr_fast.reference.philox import philox

TOLERANCES = {
    torch.float16: tolerances.ATTENTION_FLOAT16,
    torch.bfloat16: tolerances.ATTENTION_BFLOAT16,
    torch.float32: tolerances.ATTENTION_FLOAT32,
}
GRID = (4, 5)
EXTENTS = ((4, 5), (2, 3), (0, 0), (1, 9))


def problem(queries=7, head_size=16, dtype=torch.float64, grid=GRID, images=4):
    keys = grid[0] * grid[1]
    return tuple(
        torch.randn(images, 2, length, head_size, dtype=torch.float64).to(dtype)
        for length in (queries, keys, keys)
    )


def expected(query: Tensor, key: Tensor, value: Tensor, extents=EXTENTS, grid=GRID) -> Tensor:
    """Image by image over its valid keys alone."""
    out = torch.zeros_like(query)
    for b, (rows, columns) in enumerate(extents):
        inside = torch.zeros(grid, dtype=torch.bool)
        inside[:rows, :columns] = True
        k, v = key[b][:, inside.flatten()], value[b][:, inside.flatten()]
        if k.shape[1]:
            scores = query[b] @ k.mT / math.sqrt(query.shape[-1])
            out[b] = scores.softmax(-1) @ v
    return out


def close(actual, wanted, atol=tolerances.ATTENTION_FLOAT64):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=atol)


# --- parity ---------------------------------------------------------------------------------------


def test_equals_the_formula():
    query, key, value = problem()
    extents = torch.tensor(EXTENTS)
    close(attention(query, key, value, extents, GRID), expected(query, key, value))
    out, logsumexp = torch.ops.detr_fast.attention(query, key, value, extents, GRID[1], 0.0, None)
    close(out, expected(query, key, value))
    assert (logsumexp[2] == -math.inf).all()
    scores = query[0] @ key[0].mT / 4
    close(logsumexp[0], (scores / math.log(2)).exp2().sum(-1).log2())


def test_without_extents_all_keys_count():
    query, key, value = problem()
    full = ((4, 5),) * len(EXTENTS)
    for out in (
        attention(query, key, value),
        torch.ops.detr_fast.attention(query, key, value, None, 1, 0.0, None)[0],
    ):
        close(out, expected(query, key, value, full))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_types(dtype):
    query, key, value = problem(dtype=dtype)
    out = attention(query, key, value, torch.tensor(EXTENTS), GRID)
    assert out.dtype == dtype
    wanted = expected(query.double(), key.double(), value.double())
    close(out.double(), wanted, TOLERANCES[dtype])


def test_gradient_of_the_public_function():
    query, key, value = (x.requires_grad_() for x in problem(queries=3))
    extents = torch.tensor(EXTENTS)
    torch.autograd.gradcheck(
        lambda *inputs: attention(*inputs, extents, GRID), (query, key, value), fast_mode=True
    )


def test_unpadded_batches_give_torch_no_mask(monkeypatch):
    seen = []
    original = F.scaled_dot_product_attention

    def spy(*arguments, attn_mask=None, **options):
        seen.append(attn_mask)
        return original(*arguments, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention(*problem())
    attention(*problem(), grid=GRID)
    attention(*problem(), torch.tensor(EXTENTS), GRID)
    assert seen[:2] == [None, None]
    assert seen[2].shape == (len(EXTENTS), 1, 1, GRID[0] * GRID[1])


def test_weights_agree_with_the_output():
    module = MultiheadAttention(32, 2).double()
    tokens = torch.randn(4, 20, 32, dtype=torch.float64)
    out, weights = module(tokens, tokens, tokens, torch.tensor(EXTENTS), GRID, return_weights=True)
    value = module._heads(F.linear(tokens, *(x.chunk(3)[2] for x in _projection(module))))
    close(out, module.out_proj((weights @ value).transpose(1, 2).flatten(2)))
    assert torch.equal(out, module(tokens, tokens, tokens, torch.tensor(EXTENTS), GRID)[0])


def _projection(module: MultiheadAttention) -> tuple[Tensor, Tensor]:
    return module.in_proj_weight, module.in_proj_bias


# --- the batch around an image --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_does_not_depend_on_the_batch(dtype):
    query, key, value = problem(dtype=dtype)
    extents = torch.tensor(EXTENTS)
    together = attention(query, key, value, extents, GRID)
    for b in range(len(EXTENTS)):
        alone = attention(*(x[b : b + 1] for x in (query, key, value, extents)), GRID)
        assert torch.equal(alone[0], together[b])


def test_padding_reaches_nothing():
    query, key, value = (x.requires_grad_() for x in problem())
    extents = torch.tensor(EXTENTS)
    out = attention(query, key, value, extents, GRID)
    out.square().sum().backward()
    for b, (rows, columns) in enumerate(EXTENTS):
        padding = torch.ones(GRID, dtype=torch.bool)
        padding[:rows, :columns] = False
        assert not key.grad[b][:, padding.flatten()].any()
        assert not value.grad[b][:, padding.flatten()].any()
    assert not out[2].any()
    assert not query.grad[2].any()


# --- dropout --------------------------------------------------------------------------------------


def test_philox_is_the_published_generator():
    # The first word of the known answer to zeros for philox4x32 with 7 rounds, from Random123.
    assert philox(torch.tensor([0]), torch.tensor([0]), torch.tensor([0])).item() == 0x5F6FB709


def test_dropout_keeps_the_mean_and_its_gradient_the_mask():
    query, key, value = (x.requires_grad_() for x in problem(queries=5, images=2))
    seed = torch.tensor([2**61 + 12345])

    def dropped(query, key, value):
        return torch.ops.detr_fast.attention(query, key, value, None, 1, 0.4, seed)[0]

    torch.autograd.gradcheck(dropped, (query, key, value), fast_mode=True)
    with torch.no_grad():
        weights = dropped(
            *problem(200, 20, images=2)[:2], torch.eye(20).double().expand(2, 2, -1, -1)
        )
        zeros = (weights == 0).double().mean().item()
    assert zeros == pytest.approx(0.4, abs=0.02)
    assert weights.sum(-1).mean().item() == pytest.approx(1, abs=0.02)


def test_dropout_of_the_public_function():
    query, key, value = problem()
    torch.manual_seed(1)
    first = attention(query, key, value, dropout=0.5)
    assert not torch.equal(first, attention(query, key, value, dropout=0.5))
    torch.manual_seed(1)
    assert torch.equal(first, attention(query, key, value, dropout=0.5))


# --- the operation in torch -----------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_opcheck(padded, dropout):
    query, key, value = (x.requires_grad_() for x in problem())
    extents = torch.tensor(EXTENTS) if padded else None
    seed = torch.tensor([5]) if dropout else None
    arguments = (query, key, value, extents, GRID[1], dropout, seed)
    torch.library.opcheck(torch.ops.detr_fast.attention.default, arguments)
    out, logsumexp = torch.ops.detr_fast.attention(*arguments)
    gradient = torch.randn_like(out)
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    torch.library.opcheck(
        torch.ops.detr_fast.attention_backward.default,
        (gradient, *arguments, out.detach(), logsumexp),
    )


def test_gradient_of_the_reference():
    extents = torch.tensor(EXTENTS)
    inputs = tuple(x.requires_grad_() for x in problem(2, 3, grid=(2, 3)))
    torch.autograd.gradcheck(
        lambda *x: torch.ops.detr_fast.attention(*x, extents, 3, 0.0, None)[0], inputs
    )


@pytest.mark.parametrize("kernel", [True, False])
def test_compiles_without_graph_breaks_or_recompiles(kernel, monkeypatch):
    from detr_fast.ops import attention as module

    # With the kernels' devices widened to this one, the operation stands in the graph itself.
    monkeypatch.setattr(module, "_KERNEL_DEVICES", frozenset({"cpu"} if kernel else ()))
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(query, key, value, extents, rows, columns):
        return attention(query * 1, key, value, extents, (rows, columns))

    for i, grid in enumerate(((4, 5), (6, 7), (3, 9))):
        inputs = [x.requires_grad_() for x in problem(5 + i, grid=grid, dtype=torch.float32)]
        with torch.compiler.set_stance("default" if i < 2 else "fail_on_recompile"):
            out = compiled(*inputs, torch.tensor(EXTENTS), *grid)
            out.sum().backward()
        wanted = expected(*(x.detach() for x in inputs), grid=grid)
        close(out, wanted, tolerances.ATTENTION_FLOAT32)
        assert all(x.grad.isfinite().all() for x in inputs)


def test_importing_and_running_on_a_cpu_brings_no_kernels(tmp_path):
    code = "import sys, torch; from detr_fast.ops.attention import attention\n"
    code += "q = torch.ones(1, 1, 2, 16); attention(q, q, q)\n"
    code += "assert not any(name.startswith('detr_fast.kernels') for name in sys.modules)"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_triton_everything_runs_the_reference(tmp_path):
    code = "import sys; sys.modules['triton'] = None; import torch\n"
    code += "from detr_fast.ops import attention as a; q = torch.ones(1, 1, 2, 16)\n"
    code += "assert not a._KERNEL_DEVICES and a.attention(q, q, q).eq(1).all()\n"
    code += "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
    code += "assert not has('detr_fast::attention', 'CUDA')"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


# --- the kernels compile --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton")
    if importlib.util.find_spec("paper") is None:
        pytest.skip("the folder benchmarks is not beside that of the tests")
    return importlib.import_module("paper.triton_kernels")


def _check_entry(compiled, key, **options):
    kernels = set()
    for launch in compiled.entry_launches(key, **options):
        cost = compiled.compile_launch(launch, key[0])
        kernels.add(cost.kernel)
        assert not compiled.faults(cost, key[0]), cost
    assert kernels >= {"forward", "query_gradient", "key_gradient"}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("queries", ["many", "few"])
def test_head_size_32_compiles_without_a_gpu(compiled, architecture, queries):
    _check_entry(compiled, (architecture, 16, queries, 32))


@pytest.mark.parametrize("queries", ["many", "few"])
def test_other_sizes_compile_nothing_new(compiled, queries):
    seen = set()
    for rows, columns in ((25, 34), (25, 33), (17, 31), (19, 27), (42, 25), (38, 38)):
        size = (rows * columns if queries == "many" else 100, (rows, columns))
        for launch in compiled.entry_launches((90, 16, queries, 32), size=size):
            seen.add((launch.kernel.__name__, str(compiled.specialization(launch))))
    assert len(seen) == {"many": 3, "few": 4}[queries]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"dropout": 0.1}, {"bfloat": True}], ids=str)
@pytest.mark.parametrize("head_size", [16, 32, 64, 128])
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_entry_compiles_without_a_gpu(compiled, architecture, head_size, options):
    for key in compiled.TABLE:
        if (key[0], key[3]) != (architecture, head_size):
            continue
        if not options.get("bfloat"):
            _check_entry(compiled, key, **options)
        elif key[1] == 16:
            _check_entry(compiled, key, dtype=torch.bfloat16)


def test_the_table_has_an_entry_for_every_problem():
    blocks = pytest.importorskip("detr_fast.kernels.attention_blocks")
    for architecture in (70, 75, 80, 86, 89, 90, 100, 103, 120, 121):
        for size in (2, 4):
            for queries in (1, 100, 3350):
                for head_size in (1, 16, 17, 32, 80, 128):
                    key = blocks.table_key(architecture, size, queries, head_size)
                    assert key in blocks.TABLE
                    assert key[3] >= head_size
    assert blocks.table_key(86, 2, 1, 32)[0] == blocks.table_key(120, 2, 1, 32)[0] == 80


def test_splits_depend_on_one_image_alone():
    blocks = pytest.importorskip("detr_fast.kernels.attention_blocks")
    assert [blocks.splits(100, keys) for keys in (0, 100, 512, 513, 3350, 10**6)] == [
        *(1, 1, 1, 2, 7, 16)
    ]
    assert blocks.splits(850, 3350) == 1


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_arguments_are_explained():
    query, key, value = problem()
    extents = torch.tensor(EXTENTS)
    for arguments, error, message in (
        ((query[0], key, value), ValueError, r"shape \(2, 7, 16\): use \(B, H, L, D\)"),
        ((query.long(), key, value), TypeError, "query has dtype torch.int64"),
        (
            (query, key.float(), value),
            TypeError,
            "key has dtype torch.float32, query torch.float64",
        ),
        ((query, key, value.to("meta")), ValueError, "value is on meta, query on cpu"),
        ((query, key[:, :1], value), ValueError, r"key has shape .* needs \(4, 2, K, 16\)"),
        ((query, key, value[:, :, :3]), ValueError, "20 keys and 3 values"),
        ((query, key, value, extents), ValueError, "without a grid"),
        ((query, key, value, extents, (4, 4)), ValueError, r"grid is \(4, 4\), .* 20 keys"),
        ((query, key, value, extents.int(), GRID), TypeError, "torch.int32: use int64"),
        ((query, key, value, extents[:2], GRID), ValueError, r"\(2, 2\): expected \(4, 2\)"),
        ((query, key, value, extents.to("meta"), GRID), ValueError, "extents are on meta"),
        ((query, key, value, extents, GRID, 1.0), ValueError, r"dropout is 1.0: .* \[0, 1\)"),
    ):
        with pytest.raises(error, match=message):
            attention(*arguments)


@pytest.mark.parametrize("shape", [(0, 2, 3, 16), (2, 0, 3, 16), (2, 2, 0, 16)])
def test_nothing_to_do(shape):
    x = torch.ones(shape)
    assert attention(x, x, x).shape == shape


def test_no_keys_give_zeros():
    query = torch.ones(1, 1, 3, 16)
    none = torch.ones(1, 1, 0, 16)
    assert not attention(query, none, none).any()
    assert not reference.attention(query, none, none, None, 1, 0.0, None)[0].any()

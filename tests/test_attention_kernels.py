"""The attention kernels against the reference: on a GPU, or under Triton's interpreter on a CPU.

The interpreter has to be chosen before Triton is imported, so that without a GPU one test runs this
file again in a process of its own.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import tolerances
import torch
from torch import Tensor

pytest.importorskip("triton")

from detr_fast.kernels import attention as kernels
from detr_fast.ops import attention as ops
from detr_fast.reference import attention as reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCES = {
    torch.float32: tolerances.ATTENTION_FLOAT32,
    torch.float16: tolerances.ATTENTION_FLOAT16,
    torch.bfloat16: tolerances.ATTENTION_BFLOAT16,
}
# The interpreter multiplies tiles of bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]

needs_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU, and not interpreted"
)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton's interpreter takes no loop bounds from NumPy 2.4 on",
)
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def problem(queries, grid, head_size=16, extents=None, images=2, dtype=torch.float32):
    keys = grid[0] * grid[1]
    query, key, value, grad = (
        torch.randn(images, 2, length, head_size).to(DEVICE, dtype)
        for length in (queries, keys, keys, queries)
    )
    if extents is not None:
        extents = torch.tensor(extents, device=DEVICE)
    return (query, key, value, extents, grid[1]), grad


def check(arguments, grad: Tensor, dropout: float = 0.0) -> None:
    """Forward and backward of the kernels against the reference in float64."""
    seed = torch.tensor([2**61 + 7], device=DEVICE) if dropout else None
    arguments = (*arguments, dropout, seed)
    exact = [
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
    ]
    out, logsumexp = kernels.attention(*arguments)
    expected, expected_sum = reference.attention(*exact)
    gradients = kernels.attention_backward(grad, *arguments, out, logsumexp)
    expected_gradients = reference.attention_backward(grad.double(), *exact, expected, expected_sum)
    tolerance = TOLERANCES[grad.dtype]
    torch.testing.assert_close(
        logsumexp.double(), expected_sum, rtol=0, atol=tolerances.ATTENTION_FLOAT32
    )
    for actual, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert actual.dtype == grad.dtype
        torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fills what the launches allocate with NaN, so that what they leave unwritten shows."""

    def fill(allocate):
        def poison(*arguments, **options):
            x = allocate(*arguments, **options)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return poison

    monkeypatch.setattr(torch, "empty_like", fill(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", fill(Tensor.new_empty))


@pytest.fixture
def three_shares(monkeypatch):
    """Splits the keys of small problems too."""
    monkeypatch.setattr(kernels, "splits", lambda queries, keys: 3)


# --- parity ---------------------------------------------------------------------------------------


@needs_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "grid", "extents"),
    [
        (37, (6, 7), None),
        (42, (6, 7), ((6, 7), (3, 5))),
        (20, (6, 7), ((0, 0), (1, 1))),
        (20, (6, 7), ((0, 4), (4, 0))),
        (5, (11, 16), ((11, 16), (9, 16))),
        (1, (1, 1), ((1, 1), (0, 0))),
        (3, (5, 3), ((99, 2), (5, 99))),
        (150, (9, 15), ((9, 15), (4, 15))),
    ],
)
def test_equals_the_reference(queries, grid, extents, dtype):
    check(*problem(queries, grid, 32, extents, dtype=dtype))


@needs_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [16, 24, 64, 72, 128])
def test_head_sizes(head_size, dtype):
    check(*problem(19, (5, 9), head_size, ((5, 9), (3, 4)), dtype=dtype))


@needs_device
@pytest.mark.usefixtures("three_shares")
@pytest.mark.parametrize("extents", [None, ((9, 15), (4, 15)), ((0, 0), (9, 4))])
def test_split_keys(extents):
    arguments, grad = problem(9, (9, 15), 16, extents)
    entry = kernels._blocks(arguments[0], 0.0)
    launches, _ = kernels.forward_launches(entry, *arguments, 0.0, None)
    assert [launch.kernel.__name__ for launch in launches] == ["forward", "join"]
    check(arguments, grad)


@needs_device
@pytest.mark.parametrize("layout", ["projection", "joined", "sliced", "turned", "expanded"])
def test_strides(layout):
    (query, key, value, _, columns), grad = problem(21, (3, 7), 16)
    if layout == "projection":
        query, key, value, grad = (
            x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value, grad)
        )
    elif layout == "joined":
        query, key, value = torch.stack((query, key, value), 3).unbind(3)
    elif layout == "sliced":
        query, key, value, grad = (
            x.repeat_interleave(3, 2)[:, :, ::3] for x in (query, key, value, grad)
        )
    elif layout == "turned":
        query, key, value, grad = (x.mT.contiguous().mT for x in (query, key, value, grad))
    else:
        key, value = key[:1].expand_as(key), value[:, :1].expand_as(value)
        grad = grad[..., :1].expand_as(grad)
    extents = torch.tensor([[3, 7], [2, 4]], device=DEVICE).T.contiguous().T
    check((query, key, value, extents, columns), grad)


@needs_device
@pytest.mark.parametrize(("queries", "grid"), [(21, (5, 9)), (140, (3, 7))])
@pytest.mark.usefixtures("three_shares")
def test_dropout(queries, grid):
    check(*problem(queries, grid, 16, (grid, (2, 4))), dropout=0.3)


@needs_device
@pytest.mark.parametrize("shape", [(0, 2, 3, 16), (2, 0, 3, 16), (2, 2, 0, 16)])
def test_nothing_to_do(shape):
    x = torch.ones(shape, device=DEVICE)
    out, logsumexp = kernels.attention(x, x, x, None, 1, 0.0, None)
    assert out.shape == shape
    gradients = kernels.attention_backward(out, x, x, x, None, 1, 0.0, None, out, logsumexp)
    assert all(g.shape == shape for g in gradients)


@needs_device
def test_no_queries_give_keys_a_gradient_of_zero():
    query, key = torch.ones(1, 1, 0, 16, device=DEVICE), torch.ones(1, 1, 3, 16, device=DEVICE)
    out, logsumexp = kernels.attention(query, key, key, None, 1, 0.0, None)
    _, *gradients = kernels.attention_backward(
        out, query, key, key, None, 1, 0.0, None, out, logsumexp
    )
    assert not any(g.any() for g in gradients)
    out, _ = kernels.attention(key, query, query, None, 1, 0.0, None)
    assert not out.any()


# --- the batch around an image --------------------------------------------------------------------


@needs_device
@pytest.mark.parametrize("shares", [1, 3])
def test_an_image_does_not_depend_on_the_batch(shares, monkeypatch):
    monkeypatch.setattr(kernels, "splits", lambda queries, keys: shares)
    queries, grid = 20, (9, 7)
    extents = (grid, (3, 5), (0, 0))
    (*inputs, columns), grad = problem(queries, grid, 16, extents, images=3)
    options = (columns, 0.0, None)
    together = kernels.attention(*inputs, *options)
    gradients = kernels.attention_backward(grad, *inputs, *options, *together)
    for b in range(3):
        alone = [x[b : b + 1] for x in inputs]
        results = kernels.attention(*alone, *options)
        more = kernels.attention_backward(grad[b : b + 1], *alone, *options, *results)
        for one, all_ in zip((*results, *more), (*together, *gradients), strict=True):
            assert torch.equal(one[0], all_[b])


# --- through the operation ------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """The kernels as the operation's implementation, on the CPU under the interpreter."""
    if not INTERPRETED:
        yield
        return
    library = torch.library.Library("detr_fast", "IMPL")
    library.impl("attention", kernels.attention, "CPU")
    library.impl("attention_backward", kernels.attention_backward, "CPU")
    monkeypatch.setattr(ops, "_KERNEL_DEVICES", frozenset({"cpu"}))
    yield
    library._destroy()


@needs_device
@pytest.mark.usefixtures("registered")
def test_the_public_function_runs_the_kernels_forward_and_backward():
    (query, key, value, extents, _), grad = problem(20, (6, 7), 16, ((6, 7), (3, 5)))
    results = []
    for inputs in ((query, key, value), (query.double(), key.double(), value.double())):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = ops.attention(*leaves, extents, (6, 7))
        out.backward(grad.to(out.dtype))
        results.append([out, *(x.grad for x in leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=tolerances.ATTENTION_FLOAT32)
        assert not torch.equal(ours, exact.float())


@needs_device
@pytest.mark.usefixtures("registered")
def test_dropout_of_the_public_function_follows_the_seed_of_torch():
    (query, key, value, _, _), _ = problem(20, (6, 7), 16)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(ops.attention(query, key, value, dropout=0.5))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])

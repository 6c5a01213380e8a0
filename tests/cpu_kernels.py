"""What the tests of a CPU's kernels for inference share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fresh_process import run_python
from torch import Tensor

from detr_fast.ops._library import compiled_inference_dtypes

COMPILED = sorted(compiled_inference_dtypes(), key=str)
needs_kernel = pytest.mark.skipif(not COMPILED, reason="no kernel for this CPU")
compiled_dtypes = pytest.mark.parametrize(
    "dtype", COMPILED or [pytest.param(None, marks=needs_kernel)], ids=str
)
any_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
# The largest instruction set that kernels may use, and whether they are written for it.
capabilities = pytest.mark.parametrize(
    ("capability", "kernel"), [("avx2", False), ("avx512", True)]
)

# What a rounding to the bits of a dtype is off by at most, relative to the number.
OFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


def integers(shape: tuple[int, ...], most: int, dtype: torch.dtype) -> Tensor:
    """Integers from -most to `most`."""
    return torch.randint(-most, most + 1, shape).to(dtype)


def assert_within_bound(out: Tensor, wanted: Tensor, terms: Tensor, relative: float) -> None:
    """Checks a kernel's result, all sums of which are in float32.

    Args:
        out: the result, in bfloat16 or float32.
        wanted: the same in float64.
        terms: what the magnitudes of all terms of a result add up to, in float64.
        relative: what `terms` are off by before the result is rounded to bfloat16. 1 % more is for
            products of errors.
    """
    rounded = OFF[out.dtype] * wanted.abs() if out.dtype == torch.bfloat16 else 0
    assert ((out.double() - wanted).abs() <= 1.01 * (relative * terms + rounded)).all()


def assert_ignores_batch(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Checks that each of the images `x` (B, ...) gives alone what it gives among the others."""
    together = run(x)
    for b in range(len(x)):
        assert torch.equal(run(x[b : b + 1])[0], together[b])


def assert_ignores_threads(run: Callable[[], Tensor], wanted: Tensor) -> None:
    """Checks that `run` gives `wanted` with any number of threads, also more than there is work."""
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7, 19):
            torch.set_num_threads(count)
            assert torch.equal(run(), wanted)
    finally:
        torch.set_num_threads(threads)


def assert_kernel_where_wanted(
    operation: str, capability: str, kernel: bool, code: str, folder: Path
) -> None:
    """Checks an operation in a process whose kernels may use some of the CPU's instructions.

    Args:
        operation: its name.
        capability: the largest instruction set that they may use, of DETR_FAST_CPU_CAPABILITY.
        kernel: whether the operation shall have a kernel then.
        code: fails where the operation is wrong; `kernel` is a variable in it.
        folder: where to run it.
    """
    code = (
        f"import torch\nkernel = {kernel}\n{code}\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        f"assert has('detr_fast::{operation}', 'CPU') == kernel\n"
    )
    done = run_python(code, folder, DETR_FAST_CPU_CAPABILITY=capability)
    assert done.returncode == 0, done.stderr

"""Launches of the attention kernels by Triton itself, compiled for a GPU that is not there.

Everything up to the driver is real: how arguments are bound and specialised, the compilation, the
limits of shared memory and threads. The driver is a stand-in that writes down what it is given.
"""

import contextlib
import inspect
import os
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from imagined_gpu import GPU, imagined_gpu

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from detr_fast.kernels import attention as kernels
from detr_fast.kernels.attention_blocks import SHARED_MEMORY, entry_of
from detr_fast.ops import attention as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

# One of each half of the table of blocks, and that half: 12.0 has no more shared memory than 8.6.
CAPABILITIES = {(9, 0): 90, (12, 0): 80}
STREAM = 77
KERNELS = (kernels.forward, kernels.join, kernels.query_gradient, kernels.key_gradient)


class Launched(NamedTuple):
    """A launch of a kernel; `blocks` are those of its tile, its warps and its stages."""

    name: str
    grid: tuple[int, int, int]
    arguments: dict
    signature: dict
    blocks: tuple


class StandIn:
    """A driver of a GPU of this capability; `launches` is what it was given, in order."""

    def __init__(self, capability: tuple[int, int]):
        self.launches: list[Launched] = []
        self.half_of_table = CAPABILITIES[capability]
        self._capability = capability
        shared = SHARED_MEMORY[self.half_of_table]
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": shared},
            load_binary=lambda *_: (object(), object(), 0, 0, 1024),
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * self._capability[0] + self._capability[1], 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return STREAM

    def launcher_cls(self, source, metadata):
        names = source.fn.arg_names

        def launch(x, y, z, stream, function, packed, launched, enter, leave, *arguments):
            assert stream == STREAM
            given = dict(zip(names, arguments, strict=True))
            blocks = (given.get("BLOCK_Q"), given.get("BLOCK_K"))
            blocks += (metadata.num_warps, metadata.num_stages)
            self.launches.append(
                Launched(metadata.name, (x, y, z), given, source.signature, blocks)
            )

        return launch


@pytest.fixture(params=CAPABILITIES, ids=lambda capability: "sm_{}{}".format(*capability))
def stand_in(request, monkeypatch):
    made = StandIn(request.param)
    monkeypatch.setattr(driver, "_active", made)
    # What kernels were compiled for is kept with them, by device.
    for kernel in KERNELS:
        monkeypatch.setattr(
            kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder)
        )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: request.param)

    def device_of(tensor):
        assert tensor.device == GPU
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    return made


def problem(
    queries: int, grid: tuple[int, int], dtype: torch.dtype, head_size: int = 32, images: int = 2
):
    lengths = (queries, grid[0] * grid[1], grid[0] * grid[1])
    return [
        torch.randn(images, length, 8, head_size, device="cuda", dtype=dtype).transpose(1, 2)
        for length in lengths
    ]


@pytest.mark.parametrize(
    ("dtype", "dropout"), [(torch.float32, 0.0), (torch.bfloat16, 0.1)], ids=str
)
@pytest.mark.parametrize(("queries", "grid"), [(200, (10, 20)), (100, (25, 34))])
def test_all_kernels_are_launched(queries, grid, dtype, dropout, stand_in):
    with imagined_gpu():
        tensors = problem(queries, grid, dtype)
        extents = torch.zeros(2, 2, dtype=torch.int64, device="cuda")
        seed = torch.zeros(1, dtype=torch.int64, device="cuda") if dropout else None
        given = (*tensors, extents, grid[1], dropout, seed)
        out, sums = kernels.attention(*given)
        gradients = kernels.attention_backward(torch.randn_like(out), *given, out, sums)
    split = queries <= 128
    names = [launched.name for launched in stand_in.launches]
    assert names == ["forward", *["join"] * split, "query_gradient", "key_gradient"]
    key = (stand_in.half_of_table, 8 * out.element_size(), "few" if split else "many", 32)
    entry = entry_of(key, dropout > 0)
    blocks = {launched.name: launched.blocks for launched in stand_in.launches}
    blocks.pop("join", None)
    assert blocks == entry._asdict()
    tiles = -(-queries // entry.forward.queries)
    assert stand_in.launches[0].grid == (16 * tiles, 2 if split else 1, 1)
    first = stand_in.launches[0].arguments
    assert first["query"] is tensors[0]
    assert (first["stride_qb"], first["stride_qh"], first["stride_ql"]) == tensors[0].stride()[:3]
    assert (first["seed"] is None) == (dropout == 0)
    assert [x.shape for x in (out, sums)] == [tensors[0].shape, tensors[0].shape[:3]]
    assert [x.shape for x in gradients] == [x.shape for x in tensors]


def test_without_extents_and_with_a_head_of_another_size(stand_in):
    with imagined_gpu():
        out, _ = kernels.attention(*problem(150, (9, 15), torch.float16, 40), None, 1, 0.0, None)
    ((name, _, given, signature, _),) = stand_in.launches
    assert (name, given["HEAD_SIZE"], given["BLOCK_D"]) == ("forward", 40, 64)
    assert (signature["query"], signature["extents"]) == ("*fp16", "constexpr")
    assert out.dtype == torch.float16


def test_the_halves_of_the_table_are_told_apart():
    """By the blocks of the launches above that differ between them."""
    for amount in ("many", "few"):
        entries = [entry_of((half, 16, amount, 32), True) for half in CAPABILITIES.values()]
        assert entries[0] != entries[1]


def step(queries, grid, dropout=0.0):
    """All launches of a forward and a backward pass on one image.

    With two images and their 16 heads every stride would be a multiple of 16.
    """
    with imagined_gpu():
        tensors = problem(queries, grid, torch.bfloat16, images=1)
        extents = torch.zeros(1, 2, dtype=torch.int64, device="cuda")
        seed = torch.zeros(1, dtype=torch.int64, device="cuda") if dropout else None
        given = (*tensors, extents, grid[1], dropout, seed)
        out, sums = kernels.attention(*given)
        kernels.attention_backward(torch.randn_like(out), *given, out, sums)


@pytest.mark.parametrize(
    "problems",
    [
        [(208, (13, 16)), (201, (3, 67)), (850, (25, 34))],
        # Two, four and sixteen shares of the keys.
        [(96, (25, 34)), (101, (37, 47)), (1, (80, 100))],
        # Triton would tell apart what 16 divides, as it does the third of these in 31 bits, and 1.
        [(208, (13, 16), 0.1), (208, (13, 16), 0.3), (208, (13, 16), 0.5), (208, (13, 16), 2**-31)],
    ],
    ids=["lengths", "shares", "rates of dropout"],
)
def test_nothing_is_compiled_a_second_time(problems, stand_in):
    shared = problems[0][0] <= 128
    for arguments in problems:
        step(*arguments)
        compiled = {kernel.fn.__name__: len(kernel.device_caches[0][0]) for kernel in KERNELS}
        expected = {"forward": 1, "join": int(shared), "query_gradient": 1, "key_gradient": 1}
        assert compiled == expected


def test_the_schemas_have_the_arguments_of_the_launches_in_their_order():
    for operation, launch in (
        (ops._operation, kernels.attention),
        (ops._backward_operation, kernels.attention_backward),
    ):
        names = [argument.name for argument in operation._schema.arguments]
        assert names == list(inspect.signature(launch).parameters)

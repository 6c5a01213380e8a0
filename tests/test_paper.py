"""benchmarks/paper: what it reads off compiled kernels, and what it computes from that."""

import shutil

import pytest

pytest.importorskip("paper", reason="the folder benchmarks is not beside that of the tests")

from paper import ptx
from paper.hardware import GPUS
from paper.occupancy import blocks_at_once, occupancy

PTX = """
.version 8.7
.visible .entry first(
	.param .u64 .ptr .global .align 1 first_param_0
)
.maxntid 128, 1, 1
{
	ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
	@%p1 ld.global.L1::evict_last.v2.b32 { %r5, %r6 }, [ %rd2 + 0 ];
	ld.global.nc.f32 %f1, [%rd3];
	cp.async.cg.shared.global [ %r7 + 0 ], [ %rd4 + 0 ], 0x10, %r8;
	cp.async.ca.shared.global [%r7], [%rd4], 4;
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
	st.global.v4.b32 [ %rd5 + 0 ], { %r1, %r2, %r3, %r4 };
	st.global.u16 [%rd6], %rs1;
	ret;
}
.entry second()
.reqntid 256
{
	.local .align 8 .b8 __local_depot0[16];
	st.local.b32 [%rd7], %r1;
	wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%f1}, %rd1, %rd2, 1, 1, 1, 0, 0;
}
"""


def test_ptx_is_read():
    entries = ptx.entries(PTX)
    assert list(entries) == ["first", "second"]
    first, second = (ptx.read(text) for text in entries.values())
    assert first.loads == {16: 1, 8: 1, 4: 1}
    assert first.stores == {16: 1, 2: 1}
    assert first.copies == {16: 1, 4: 1}
    assert first.matrix == {"mma.sync": 1}
    assert (first.local, first.threads, first.widest()) == (0, 128, 16)
    assert second.matrix == {"wgmma.mma_async": 1}
    assert (second.local, second.threads, second.widest()) == (2, 256, 0)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        (80, 1024, 32, 0, 2),  # all warps
        (80, 32, 16, 0, 32),  # all blocks
        (80, 128, 255, 0, 2),  # registers: 8192 a warp
        (90, 256, 64, 0, 4),
        (80, 128, 32, 54 * 1024, 2),  # shared memory: 55 KiB with what the driver keeps
        (75, 128, 32, 32 * 1024, 2),  # where it keeps nothing
        (90, 128, 32, 228 * 1024, 0),
    ],
)
def test_occupancy_of_known_cases(architecture, threads, registers, shared, blocks):
    assert blocks_at_once(architecture, threads, registers, shared) == blocks
    limit = {75: 32, 80: 64, 90: 64}[architecture]
    share = occupancy(architecture, threads, registers, shared)
    assert share == pytest.approx(blocks * threads / 32 / limit)


def test_published_rates_fit_the_chips():
    """Products of a clock and multiprocessor: 1024 multiply-adds on 8.0, 2048 on 9.0."""
    for gpu in GPUS:
        each = {80: 2 * 1024, 90: 2 * 2048}[gpu.architecture]
        assert each * gpu.multiprocessors * gpu.clock == pytest.approx(gpu.half_rate, rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_kernels_compile_without_warnings_or_spills():
    from paper import cuda_kernels

    rows, _ = cuda_kernels.rows((80, 90))
    assert {row["file"] for row in rows} == {"assign.cu", "matching.cu", "clear_padding.cu"}
    for row in rows:
        assert not cuda_kernels.faults(row), row
        assert row["threads"] > 0


@pytest.mark.slow
def test_floors_have_every_target_that_counts_time():
    from gpu.targets import TARGETS
    from paper import floors

    tasks = {task.what: task for task in floors.tasks()}
    counted = {what for what, target in TARGETS.items() if "%" not in target.figure}
    assert counted <= set(tasks)
    for what in counted:
        # A target below the floor could not be met.
        assert floors.target_ms(tasks[what]) > 1000 * tasks[what].seconds(GPUS[0]) > 0
    assert tasks["detr_resnet50, 1 x 800 x 1066"].work.flops == pytest.approx(162e9, rel=0.01)

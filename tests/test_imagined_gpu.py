"""The GPU that is imagined in other tests refuses what a GPU refuses, and sees who waits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from imagined_gpu import GPU, KERNELS, imagined_gpu
from torch import nn

from detr_fast.ops import _library


def test_shapes_types_and_gradients_are_those_of_a_gpu():
    with imagined_gpu() as gpu:
        layer = nn.Linear(3, 4).to("cuda")
        images = torch.randn(2, 3, device="cuda", requires_grad=True)
        with gpu.no_waiting():
            out = F.relu(layer(images)).sum()
            out.backward()
        assert (out.shape, out.device, out.is_cuda) == ((), GPU, True)
        assert (images.grad.shape, layer.weight.grad.device) == ((2, 3), GPU)
        assert torch.zeros(2).sum().item() == 0  # as ever on the CPU


def test_autocast_is_that_of_a_gpu():
    with imagined_gpu(autocast=True):
        layer, norm = nn.Linear(3, 4).to("cuda"), nn.LayerNorm(4).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(torch.randn(2, 3, device="cuda"))
            assert (out.dtype, norm(out).dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(5)),
    ],
)
def test_waiting_is_seen(wait):
    with imagined_gpu() as gpu:
        x = torch.rand(5, device="cuda")
        with pytest.raises(AssertionError, match="the host waits"), gpu.no_waiting():
            wait(x)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(5),
        lambda x: torch.cat([x, torch.ones(5)]),
        lambda x: torch.where(torch.ones(5) > 0, x, 0),
        lambda x: x[torch.tensor([1, 2])],
        lambda x: F.linear(torch.ones(2, 5), x[None]),
    ],
)
def test_tensors_of_two_devices_are_refused(mix):
    with imagined_gpu(), pytest.raises(RuntimeError, match="on the CPU"):
        mix(torch.rand(5, device="cuda"))


def test_several_dtypes_are_refused():
    with imagined_gpu(), pytest.raises(RuntimeError, match="float16"):
        F.linear(torch.rand(2, 5, device="cuda"), torch.rand(3, 5, device="cuda").half())


def test_what_does_not_wait_is_not_reported():
    with imagined_gpu() as gpu, gpu.no_waiting():
        x = torch.rand(5, device="cuda") * torch.tensor(2.0)
        x += torch.ones(5).to("cuda", non_blocking=True)
        x[:2] = 0.0
        x.index_select(0, torch.zeros(2, dtype=torch.int64, device="cuda"))


def test_every_operation_in_triton_is_known_here():
    assert set(KERNELS) >= _library.TRITON_OPERATIONS


def test_page_locked_memory_is_known_and_other_memory_is_not():
    with imagined_gpu() as gpu:
        made = torch.empty(2, 3, dtype=torch.uint8, pin_memory=True)
        sources = [made, made[1:], torch.zeros(4).pin_memory(), torch.zeros(5)]
        with gpu.no_waiting():
            for x in sources:
                x.to("cuda", non_blocking=True)
        assert gpu.uploads == [(2, 3), (1, 3), (4,), (5,)]
        assert gpu.page_locked == [
            ((2, 3), torch.uint8),
            ((1, 3), torch.uint8),
            ((4,), torch.float32),
        ]
        made.to("cuda")
        assert len(gpu.waited()) == 1


def test_other_threads_see_the_same_gpu():
    with imagined_gpu() as gpu, ThreadPoolExecutor(1) as pool:
        made = pool.submit(torch.empty, 7, pin_memory=True).result()
        pool.submit(made.to, "cuda").result()
        assert gpu.waited() == ["a copy of (7,) to the GPU"]
        made.to("cuda", non_blocking=True)
        assert gpu.page_locked == [((7,), torch.float32)]

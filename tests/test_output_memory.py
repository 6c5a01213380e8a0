"""Outputs of the compiled operations in memory that is kept."""

import copy
import pickle
import threading

import pytest
import torch
from cpu_kernels import needs_kernel
from fresh_process import run_python

from detr_fast import Engine, build_model
from detr_fast.inference.output_memory import OutputMemory
from detr_fast.ops.pointwise import pointwise_convolution, pointwise_weight

MIB = 1 << 20
WEIGHT = pointwise_weight(torch.eye(64)[..., None, None])
BIAS = torch.zeros(64)


def image(mib: float) -> torch.Tensor:
    """(1, 64, H, W) of so many MiB, channels last."""
    rows = round(mib * MIB / (4 * 64 * 64))
    return torch.randn(1, 64, rows, 64).contiguous(memory_format=torch.channels_last)


def same(x: torch.Tensor) -> torch.Tensor:
    return pointwise_convolution(x, WEIGHT, BIAS)


@needs_kernel
def test_an_output_leaves_its_memory_to_the_next():
    memory = OutputMemory()
    x = image(4)
    with memory.used():
        out = same(x)
        assert torch.equal(out, x)
        assert out.is_contiguous(memory_format=torch.channels_last)
        place = out.data_ptr()
        del out
        assert same(-x).data_ptr() == place
        assert same(image(3)).data_ptr() == place
    assert memory.bytes == 4 * MIB
    assert same(x).data_ptr() != place


@needs_kernel
def test_an_output_in_use_keeps_its_memory():
    memory = OutputMemory()
    x = [image(2) for _ in range(5)]
    with memory.used():
        out = [same(one) for one in x]
        del out[1::2]
        out += [same(one) for one in x[1::2]]
    wanted = x[::2] + x[1::2]
    assert all(torch.equal(one, other) for one, other in zip(out, wanted, strict=True))
    assert memory.bytes == 10 * MIB


@needs_kernel
def test_small_outputs_are_not_kept():
    memory = OutputMemory()
    with memory.used():
        out = same(image(0.9))
    assert out.numel() > 0
    assert memory.bytes == 0


@needs_kernel
def test_holds_at_most_twice_what_was_in_use():
    memory = OutputMemory()
    with memory.used():
        for mib in range(1, 12):
            same(image(mib))
            assert memory.bytes <= 2 * mib * MIB
        held = memory.bytes
        for mib in range(11, 0, -1):
            same(image(mib))
    assert memory.bytes == held


@needs_kernel
def test_outputs_outlive_it():
    memory = OutputMemory()
    x = image(2)
    with memory.used():
        out = same(x)
    del memory
    assert torch.equal(out, x)


@needs_kernel
def test_is_used_within_its_block_even_after_an_error():
    memory, other = OutputMemory(), OutputMemory()
    with memory.used():
        with pytest.raises(ValueError, match="stop"), other.used():
            raise ValueError("stop")
        same(image(2))
    same(image(2))
    assert (memory.bytes, other.bytes) == (2 * MIB, 0)


@needs_kernel
def test_threads_share_it():
    memory = OutputMemory()
    wrong = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(), memory.used():
            for _ in range(50):
                x = torch.rand(1, 64, 70, 70, generator=generator)
                x = x.contiguous(memory_format=torch.channels_last)
                out = same(x)
                if not torch.equal(same(out), x):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 < memory.bytes <= 2 * 8 * 4 * 64 * 70 * 70
    # Of another thread it is not.
    same(image(40))
    assert memory.bytes < 40 * MIB


@needs_kernel
def test_a_second_call_of_an_engine_takes_no_pages_from_the_system(tmp_path):
    """The C library's own limit is 32 MiB; here are outputs of 50."""
    code = "import resource, torch, detr_fast\n"
    code += "model = detr_fast.build_model('detr_resnet50', enc_layers=1, dec_layers=1)\n"
    code += "engine = detr_fast.Engine(model.eval())\n"
    code += "image = torch.randn(3, 512, 1600)\n"
    code += "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
    code += "for _ in range(3):\n    before = pages(); engine([image])\n"
    code += "assert pages() - before < 2000, pages() - before"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_engine_overwrites_no_answer_and_holds_no_more_with_every_call():
    torch.manual_seed(0)
    engine = Engine(build_model("detr_resnet50", enc_layers=1, dec_layers=1).eval())
    images = [[torch.randn(3, 192, 256)], [torch.randn(3, 96, 320), torch.randn(3, 160, 128)]]
    with torch.inference_mode():
        first = [engine(batch) for batch in images]
        held = engine._memory.bytes
        for _ in range(3):
            for batch, wanted in zip(images, first, strict=True):
                for name, out in engine(batch).items():
                    assert torch.equal(out, wanted[name])
    assert engine._memory.bytes == held
    # Where an engine moves, nothing is left behind.
    assert engine.to("cpu")._memory.bytes == 0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_begin_empty(again):
    memory = OutputMemory()
    with memory.used():
        same(image(2))
    twin = again(memory)
    assert twin.bytes == 0
    with twin.used():
        same(image(2))
    assert twin.bytes == memory.bytes
    engine = Engine(build_model("detr_tiny").eval())
    x = [torch.randn(3, 64, 64)]
    assert torch.equal(again(engine)(x)["pred_boxes"], engine(x)["pred_boxes"])


def test_without_compiled_operations_it_does_nothing(tmp_path):
    code = "import torch, detr_fast\n"
    code += "from detr_fast.inference.output_memory import OutputMemory\n"
    code += "memory = OutputMemory()\nwith memory.used():\n    torch.zeros(1 << 20)\n"
    code += "assert memory.bytes == 0"
    done = run_python(code, tmp_path, DETR_FAST_EXTENSION="0")
    assert done.returncode == 0, done.stderr

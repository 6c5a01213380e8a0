"""What a process has asked the system for, it does not ask for again in every call."""

import ctypes
import platform

import pytest
from fresh_process import run_python
from PIL import Image

from detr_fast.cli.main import main
from detr_fast.inference import kept_memory

# Prints how many pages three calls got from the system, after two to begin with.
SCRIPT = """
import resource
import torch
from detr_fast import Engine, build_model
from detr_fast.inference.kept_memory import keep_freed_memory

torch.set_num_threads(1)
print(keep_freed_memory())
model = build_model("detr_tiny").eval()
engine = Engine(model)
image = torch.randn(3, 1024, 1024)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for call in range(5):
    if call == 2:
        before = faults()
    engine([image])
print(faults() - before)
"""
GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not GLIBC, reason="glibc is told to keep it")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}])
def test_memory_is_kept_unless_the_environment_decides(variables, tmp_path):
    process = run_python(SCRIPT, tmp_path, **variables)
    assert process.returncode == 0, process.stderr
    kept, faults = process.stdout.split()
    assert kept == str(not variables)
    # The stem's features alone, 64 MiB in each call, are 16,384 pages of 4 KiB. A few hundred come
    # anew in any case, more where the system takes idle pages away.
    assert int(faults) > 3 * 16384 if variables else int(faults) < 16384


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "picture.png", "--model", "detr_tiny"],
        ["eval", "--max_images", "1"],
        ["verify", "--precision", "fp32", "--max_images", "1"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_own_the_process_keep_its_memory(command, tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(kept_memory, "keep_freed_memory", lambda: calls.append(command))
    assert main([*command, "--device", "cpu"]) == 0
    assert calls == [command]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert kept_memory.keep_freed_memory() is False

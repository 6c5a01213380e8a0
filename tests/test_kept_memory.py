"""What an engine computes with it does not ask the system for again in every call."""

import ctypes
import platform

import pytest
from fresh_process import run_python

from detr_fast.inference import kept_memory

# Prints how many pages three calls got from the system, after two to begin with.
SCRIPT = """
import resource
import torch
from detr_fast import Engine, build_model

torch.set_num_threads(1)
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
def test_an_engine_keeps_its_memory_unless_the_environment_decides(tmp_path):
    kept = run_python(SCRIPT, tmp_path)
    assert kept.returncode == 0, kept.stderr
    # The stem's features alone, 64 MiB in each call, are 16,384 pages of 4 KiB.
    assert int(kept.stdout) < 1000
    decided = run_python(SCRIPT, tmp_path, MALLOC_MMAP_THRESHOLD_=str(1 << 20))
    assert decided.returncode == 0, decided.stderr
    assert int(decided.stdout) > 3 * 16384


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert kept_memory.keep_freed_memory() is False

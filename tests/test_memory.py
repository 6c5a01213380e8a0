"""What matching needs beside its inputs: the costs within images, never of all against all."""

import sys

import pytest
from fresh_process import run_python

from detr_fast import _extension

SETS, IMAGES, QUERIES, CLASSES = 6, 16, 300, 92
COUNTS = [2000] + [5] * 15
# float32 costs of every query with the targets of its image, four times over.
LIMIT = 4 * SETS * QUERIES * sum(COUNTS) * 4

# Prints how far the process grew while it matched. The largest size a process ever had is all that
# the system tells, so the process is first blown up to where it once was.
SCRIPT = f"""
import resource
import torch
from detr_fast.ops.set_matching import set_matching

torch.set_num_threads(8)
counts = {COUNTS}
logits = torch.randn({SETS}, {IMAGES}, {QUERIES}, {CLASSES})
boxes = torch.rand({SETS}, {IMAGES}, {QUERIES}, 4)
targets = torch.zeros(sum(counts), dtype=torch.int64), torch.rand(sum(counts), 4)
offsets = torch.tensor([0, *counts]).cumsum(0)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

small = logits[:, 1:], boxes[:, 1:], targets[0][:75], targets[1][:75], offsets[1:] - offsets[1]
set_matching(*small)  # starts the threads
ballast, before = [], peak()
while peak() <= before + 2**16:
    ballast.append(bytearray(2**16))
before = peak()
set_matching(logits, boxes, *targets, offsets)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process as Linux has it")
@pytest.mark.skipif(not _extension.available(), reason="needs the compiled module")
def test_one_crowded_image_needs_the_memory_of_its_own_costs(tmp_path):
    done = run_python(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    # The costs of the crowded image were there, so the measurement sees what it should.
    assert QUERIES * max(COUNTS) * 4 <= grown < LIMIT

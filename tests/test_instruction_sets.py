"""Every instruction set gives the same costs and matches, bit for bit."""

import pytest
from fresh_process import run_python

from detr_fast import _extension

pytestmark = pytest.mark.skipif(not _extension.available(), reason="needs the compiled module")

# Prints a digest of costs and matches over every path through the formulas.
SCRIPT = """
import hashlib
import torch
from detr_fast.ops.matching_cost import matching_cost
from detr_fast.ops.set_matching import set_matching

torch.manual_seed(0)
digest = hashlib.sha256()
for classes, queries in ((1, 3), (13, 37), (92, 100), (366, 33)):
    for dtype in (torch.float32, torch.bfloat16):
        logits = (torch.randn(2, 3, queries, classes) * 8).to(dtype)
        boxes = torch.rand(2, 3, queries, 4)
        logits[0, 0, 0, 0], boxes[0, 1, 1, 1] = float("nan"), float("inf")
        targets = torch.randint(classes, (30,)), torch.rand(30, 4), torch.tensor([0, 7, 7, 30])
        for options in (
            {"class_cost": "softmax"},
            {"class_cost": "focal"},
            {"class_cost": "focal", "eps": 0.0},
            {"class_cost": "focal", "gamma": 1.7},
        ):
            cost = matching_cost(logits, boxes, *targets, weight_bbox=5.0, **options)
            # The bits of a NaN say nothing.
            digest.update(cost.nan_to_num(nan=12345.0).numpy().tobytes())
            digest.update(set_matching(logits, boxes, *targets, **options).numpy().tobytes())
print(digest.hexdigest())
"""


def test_costs_and_matches_agree_in_every_bit(tmp_path):
    digests = {}
    for capability in ("portable", "avx2", "avx512"):
        done = run_python(SCRIPT, tmp_path, DETR_FAST_CPU_CAPABILITY=capability)
        assert done.returncode == 0, done.stderr
        digests[capability] = done.stdout.strip()
    assert len(set(digests.values())) == 1, digests

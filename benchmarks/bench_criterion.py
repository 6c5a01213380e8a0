"""Criterion, forward and backward, against that of transformers.

    python -m pytest benchmarks/bench_criterion.py --benchmark-json=criterion.json
    python benchmarks/report.py criterion.json --out benchmarks/results/MACHINE

Six decoder layers, 91 classes and the target counts of real COCO images. The losses of both are
compared before anything is timed. Threads as OMP_NUM_THREADS says.
"""

import pytest
import torch
from criterion_workloads import WEIGHTS, detr_fast, step, transformers, workload
from matching_workloads import coco_counts


@pytest.mark.parametrize("implementation", [detr_fast, transformers], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("images", "queries"), [(2, 100), (8, 100), (32, 100), (8, 300)])
def test_criterion(benchmark, implementation, images, queries):
    pytest.importorskip("transformers.loss.loss_for_object_detection")
    layers, targets = workload(coco_counts(images), queries)
    ours, theirs = detr_fast(layers, targets)(), transformers(layers, targets)()
    for name in WEIGHTS:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    losses = implementation(layers, targets)
    benchmark.extra_info |= {
        "subject": implementation.__name__,
        "batch": images,
        "queries": queries,
        "targets": sum(len(target["labels"]) for target in targets),
    }
    benchmark.pedantic(lambda: step(layers, losses), rounds=9, warmup_rounds=2)

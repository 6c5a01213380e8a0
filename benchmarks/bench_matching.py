"""Matching of one layer from logits and boxes, against the matchers that projects use.

    python -m pytest benchmarks/bench_matching.py --benchmark-json=matching.json
    python benchmarks/report.py matching.json --out benchmarks/results/MACHINE

Every cell of images x queries x targets is timed with transformers' matcher and with targets
padded and a loop over SciPy. The answers are compared before anything is timed. A cell is left out
for a matcher that would need more than 512 MiB for one of its matrices, of which it holds a dozen.
Threads as OMP_NUM_THREADS says.
"""

import time

import pytest
from matching_workloads import (
    agree,
    coco_counts,
    detr_fast,
    matching,
    padded_scipy,
    total_cost,
    transformers,
)

IMPLEMENTATIONS = (detr_fast, transformers, padded_scipy)
IMAGES, QUERIES = (1, 2, 8, 32, 64), (100, 300, 900)
# None: more targets than queries.
TARGETS = (0, 1, 7, 30, 100, None)
LARGEST_MATRIX = 2**29


def measure(benchmark, implementation, workload, outputs, targets):
    images, queries = outputs["pred_boxes"].shape[:2]
    counts = [len(target["labels"]) for target in targets]
    entries = {transformers: images * sum(counts), padded_scipy: images * max(counts)}
    if 4 * queries * entries.get(implementation, 0) > LARGEST_MATRIX:
        pytest.skip("one matrix of this matcher would be larger than 512 MiB")
    try:
        match = implementation(outputs, targets)
    except ImportError as error:
        pytest.skip(str(error))
    start = time.perf_counter()
    indices = match()
    duration = time.perf_counter() - start
    answer = total_cost(outputs, targets, indices)
    assert agree(answer, total_cost(outputs, targets, detr_fast(outputs, targets)()))
    benchmark.extra_info |= {
        "subject": implementation.__name__,
        "batch": images,
        "queries": queries,
        **workload,
    }
    benchmark.pedantic(
        match,
        rounds=15 if duration < 0.3 else 3,
        iterations=5 if images * queries < 1000 else 1,
        warmup_rounds=1,
    )


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("targets", TARGETS, ids=lambda t: f"M{t or '>Q' if t != 0 else 0}")
@pytest.mark.parametrize("queries", QUERIES, ids=lambda q: f"Q{q}")
@pytest.mark.parametrize("images", IMAGES, ids=lambda b: f"B{b}")
def test_grid(benchmark, images, queries, targets, implementation):
    count = queries + 20 if targets is None else targets
    workload = {"targets": count, "counts": "equal", "predictions": "untrained"}
    measure(benchmark, implementation, workload, *matching([count] * images, queries))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize(("images", "queries"), [(2, 100), (8, 100), (32, 300), (64, 900)])
def test_coco(benchmark, images, queries, trained, implementation):
    counts = coco_counts(images)
    workload = {
        "targets": round(sum(counts) / images, 1),
        "counts": "COCO",
        "predictions": "trained" if trained else "untrained",
    }
    measure(benchmark, implementation, workload, *matching(counts, queries, trained))

"""Ten training steps of transformers' own models, with this package's matcher under their losses.

    python -m pytest benchmarks/bench_integrations.py --benchmark-json=integrations.json
    python benchmarks/report.py integrations.json --out benchmarks/results/MACHINE

The models are random and their backbones tiny, so that what is seen is the loss. Timed are the ten
steps, and in them the matcher alone. The losses of both are compared before. Threads as
OMP_NUM_THREADS says.
"""

import contextlib
import statistics
import time

import pytest
import torch
from matching_workloads import coco_counts
from transformers_tiny import detr, lw_detr

from detr_fast.integrations.transformers import patched

pytest.importorskip("transformers", minversion="5.17")
lw_detr_loss = pytest.importorskip("transformers.loss.loss_lw_detr")
object_detection = pytest.importorskip("transformers.loss.loss_for_object_detection")

IMAGES, STEPS = 16, 10
COMMON = {"num_labels": 91, "d_model": 32, "decoder_layers": 6}


MODELS = {
    "DETR": (lambda: detr(num_queries=100, **COMMON), object_detection.HungarianMatcher),
    "LW-DETR": (
        lambda: lw_detr(num_queries=16, group_detr=5, **COMMON),
        lw_detr_loss.LwDetrHungarianMatcher,
    ),
}


def train(build, matcher, monkeypatch):
    """The losses of ten steps and the seconds spent in the matcher."""
    torch.manual_seed(0)
    model = build()
    forward, spent = matcher.forward, []

    def timed(self, *arguments, **named):
        start = time.perf_counter()
        found = forward(self, *arguments, **named)
        spent.append(time.perf_counter() - start)
        return found

    monkeypatch.setattr(matcher, "forward", timed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    losses = []
    for _ in range(STEPS):
        labels = [
            {"class_labels": torch.randint(91, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3}
            for n in coco_counts(IMAGES)
        ]
        loss = model(pixel_values=torch.randn(IMAGES, 3, 64, 64), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    monkeypatch.setattr(matcher, "forward", forward)
    return losses, sum(spent)


@pytest.mark.parametrize("matcher", ["transformers", "detr_fast"])
@pytest.mark.parametrize("model", MODELS)
def test_ten_steps(benchmark, monkeypatch, model, matcher):
    build, their_matcher = MODELS[model]
    theirs, _ = train(build, their_matcher, monkeypatch)
    spent = []

    def steps():
        losses, seconds = train(build, their_matcher, monkeypatch)
        spent.append(seconds)
        return losses

    with patched() if matcher == "detr_fast" else contextlib.nullcontext():
        assert steps() == pytest.approx(theirs, rel=1e-5)
        spent.clear()
        benchmark.pedantic(steps, rounds=3)
    benchmark.extra_info |= {
        "subject": matcher,
        "model": model,
        "images": IMAGES,
        "matcher": statistics.median(spent),
    }

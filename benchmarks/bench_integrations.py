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

from detr_fast.integrations.transformers import patched

transformers = pytest.importorskip("transformers", minversion="5.17")
lw_detr = pytest.importorskip("transformers.loss.loss_lw_detr")
object_detection = pytest.importorskip("transformers.loss.loss_for_object_detection")

IMAGES, STEPS = 16, 10
COMMON = {"num_labels": 91, "d_model": 32, "decoder_layers": 6}


def detr():
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        num_queries=100,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        auxiliary_loss=True,
        backbone=None,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        **COMMON,
    )
    return transformers.DetrForObjectDetection(config), object_detection.HungarianMatcher


def grouped():
    backbone = transformers.LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        out_indices=[1, 2],
        num_windows=4,
        window_block_indices=[0],
    )
    config = transformers.LwDetrConfig(
        backbone_config=backbone,
        projector_scale_factors=[1.0],
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        decoder_ffn_dim=32,
        group_detr=5,
        num_queries=16,
        **COMMON,
    )
    return transformers.LwDetrForObjectDetection(config), lw_detr.LwDetrHungarianMatcher


MODELS = {"DETR": detr, "LW-DETR": grouped}


def train(build, monkeypatch):
    """The losses of ten steps and the seconds spent in the matcher."""
    torch.manual_seed(0)
    model, matcher = build()
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
    build = MODELS[model]
    theirs, _ = train(build, monkeypatch)
    spent = []

    def steps():
        losses, seconds = train(build, monkeypatch)
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

"""Inference of the four models by the package's own benchmark, and batches of mixed sizes.

The benchmark runs once for a model and a batch size, checks all implementations against each other
and times them in turn; the rows here are its figures. Mixed sizes are those of COCO's validation
images, padded as they come, with exact batches and without.
"""

from functools import cache, partial

import torch
from bench_inference import peers

from detr_fast.inference.benchmark.implementations import (
    REFERENCE,
    Maker,
    compiled,
    eager,
    makers,
    model_to_time,
)
from detr_fast.inference.benchmark.measure import measure
from detr_fast.inference.benchmark.noise import noise_image
from detr_fast.inference.benchmark.workloads import (
    SHORT_SIDE,
    Pipeline,
    Workload,
    fixed_size,
    preprocess_for,
    val2017_sizes,
    zoo_protocol,
)
from detr_fast.inference.engine import Engine
from detr_fast.inference.images import read_image

from ..part import OURS, Case, Measurement
from ..setting import Setting
from ..timing import peak_mib, seconds_of

MODELS = ("detr_resnet50", "detr_resnet101", "detr_resnet50_dc5", "detr_resnet101_dc5")
MIXED = 32
ROUNDS = 5


def cases(setting: Setting) -> list[Case]:
    models = setting.size(MODELS, MODELS[:1])
    listed = []
    for batch in setting.size((1, 32, 2, 4, 8, 16), (1, 2)):
        for name in models:
            size = " x ".join(map(str, setting.size((800, 1066), (64, 85))))
            listed += _fixed(setting, name, f"{name}, {batch} x {size}", batch)
    for name in models:
        listed += _mixed(setting, name)
    images = setting.size(100, 2)
    listed += _rows(setting, models[0], f"{models[0]}, zoo protocol", "zoo", images, _made(setting))
    # What compiles for long comes last.
    for batch in setting.size((1, 32), (2,)):
        what = f"{models[0]}, {batch} x {size}"
        made = {COMPILED: partial(compiled, precision=_precision(setting), mode="max-autotune")}
        if not setting.on_gpu:
            made = {}
        listed += _rows(setting, models[0], what, "fixed", batch, made)
    return listed

"""Inference of the four models by the package's own benchmark, and batches of mixed sizes.

The benchmark runs once for a model and a workload, checks its implementations against each other
and times them in turn; the rows here are its figures. Mixed sizes are those of COCO's validation
images, padded as they come, with exact batches and without.
"""

from functools import cache, partial

import torch
from bench_inference import peers

from detr_fast.inference.benchmark.implementations import (
    REFERENCE,
    makers,
    model_to_time,
)
from detr_fast.inference.benchmark.measure import measure
from detr_fast.inference.benchmark.noise import noise_image
from detr_fast.inference.benchmark.workloads import (
    SHORT_SIDE,
    Pipeline,
    fixed_size,
    preprocess_for,
    val2017_sizes,
    zoo_protocol,
)
from detr_fast.inference.engine import Engine

from ..part import OURS, Case, Measurement
from ..setting import Setting
from ..timing import peak_mib, seconds_of

MODELS = ("detr_resnet50", "detr_resnet101", "detr_resnet50_dc5", "detr_resnet101_dc5")
# What an image of 480 x 640, COCO's commonest size, becomes.
SIZE = (800, 1066)
ROUNDS = 5
ZOO_PROTOCOL = 0


def cases(setting: Setting) -> list[Case]:
    models = setting.size(MODELS, MODELS[:1])
    size = "{} x {}".format(*setting.size(SIZE, (64, 85)))
    # First what has a target.
    listed = [
        case
        for batch in setting.size((1, 32, 2, 4, 8, 16), (1, 2))
        for name in models
        for case in _rows(setting, name, f"{name}, {batch} x {size}", batch)
    ]
    images = setting.size(32, 3)
    for name in models:
        for exact in (False, True):
            what = f"{name}, {'exact batches, ' * exact}{images} mixed images"
            listed.append(Case(what, OURS, partial(_mixed, setting, name, images, exact)))
    listed += _rows(setting, models[0], f"{models[0]}, zoo protocol", ZOO_PROTOCOL)
    # What compiles for long comes last.
    name = setting.size(models[0], "detr_tiny")
    for batch in setting.size((1, 32), (1,)):
        listed += _rows(setting, name, f"{name}, {batch} x {size}", batch, compiled=True)
    return listed


def _precision(setting: Setting) -> str:
    return "fp16" if setting.on_gpu else "bf16"


def _rows(setting: Setting, name: str, what: str, batch: int, compiled: bool = False) -> list[Case]:
    """The cases of one run of the benchmark."""
    precision = _precision(setting)
    who = {
        f"engine {precision}": OURS,
        REFERENCE: "the model, float32",
        f"transformers {precision}": f"transformers, {precision}",
    }
    if compiled:
        who = {f"compiled {precision}": "the model by torch.compile(mode='max-autotune')"}
    return [
        Case(what, told, partial(_figures, setting, name, batch, compiled, implementation))
        for implementation, told in who.items()
    ]


def _figures(
    setting: Setting, name: str, batch: int, compiled: bool, implementation: str
) -> Measurement:
    record = _benchmark(setting, name, batch, compiled)
    if implementation in record["absent"]:
        raise ImportError(record["absent"][implementation])
    if implementation in record["refused"]:
        raise RuntimeError("; ".join(record["refused"][implementation]))
    (workload,) = record["workloads"]
    (figures,) = (each for each in workload["implementations"] if each["name"] == implementation)
    seconds = figures["seconds"]["model"]["median"]
    peak = figures["peak_bytes"]
    return Measurement(
        seconds,
        images=workload["batch_size"],
        flops=figures["flops"] * seconds,
        floor_seconds=figures["floor_seconds"],
        peak_mib=None if peak is None else peak / 2**20,
        extra={"end to end ms": 1000 * figures["seconds"]["end_to_end"]["median"]},
    )


def _benchmark(setting: Setting, name: str, batch: int, compiled: bool) -> dict:
    """The benchmark's record of a model on one workload."""
    outcome = _outcome(setting, name, batch, compiled)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@cache
def _outcome(setting: Setting, name: str, batch: int, compiled: bool) -> dict | Exception:
    """The record or the error, which is that of all rows and takes its time once."""
    try:
        return _record(setting, name, batch, compiled)
    except Exception as error:
        # Its frames would hold the memory of the device.
        return error.with_traceback(None)


def _record(setting: Setting, name: str, batch: int, compiled: bool) -> dict:
    precisions = [_precision(setting)]
    mode = setting.size("max-autotune", "default") if compiled else "none"
    made = makers(precisions, mode, _short_side(setting))
    if compiled:
        made = {who: made[who] for who in (REFERENCE, f"compiled {precisions[0]}")}
    else:
        made |= peers(precisions, torch.device(setting.device))
    workload = fixed_size(batch, ROUNDS)
    if batch == ZOO_PROTOCOL:
        workload = zoo_protocol(setting.size(100, 2))
    (record,) = measure([name], made, precisions, [workload], _pipeline(setting))["models"]
    return record


def _short_side(setting: Setting) -> int:
    return setting.size(SHORT_SIDE, 64)


def _pipeline(setting: Setting) -> Pipeline:
    return Pipeline(preprocess_for(_short_side(setting)), torch.device(setting.device))


def _mixed(setting: Setting, name: str, images: int, exact: bool) -> Measurement:
    """A padded batch; with exact batches also by how much slower it is than without."""
    sources = [noise_image(*size, seed=seed) for seed, size in enumerate(val2017_sizes()[:images])]
    batch, _ = _pipeline(setting).prepare(tuple(sources))
    engine = Engine(
        model_to_time(name, "none"),
        _precision(setting),
        setting.device,
        short_side=_short_side(setting),
    )

    def measured(exactly: bool) -> float:
        engine.exact_batches = exactly
        return seconds_of(lambda: engine(batch), setting.device)

    seconds = measured(exact)
    extra = {"slower %": 100 * (seconds / measured(False) - 1)} if exact else {}
    engine.exact_batches = exact
    peak = peak_mib(lambda: engine(batch), setting.device)
    return Measurement(seconds, images=images, peak_mib=peak, extra=extra)

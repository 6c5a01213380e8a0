"""The benchmark: implementations of the same models, checked, then timed in turn.

Whatever else the machine does meets all alike: each batch goes through every implementation before
the next one comes. Before anything is timed each implementation has run on every size that occurs,
and its answers were compared with the model's; one that is wrong is not timed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial

import numpy as np
import torch

from ..._environment import clocks
from ...models.work import Work, count_work
from ...models.zoo import build_model
from ..engine import PRECISIONS
from ..float32 import full_float32
from ..verify import compare_outputs
from . import published
from .implementations import REFERENCE, Implementation, Maker, model_to_time
from .memory import with_peak_memory
from .roofline import copy_bandwidth, matrix_rate
from .timing import spread, stage_times, timed
from .workloads import Pipeline, Workload

# What follows the stages of `Stages.ends` in a model.
LAST_STAGE = "heads"


@dataclass
class Samples:
    """What is measured of one implementation on one workload.

    Attributes:
        seconds: of each batch, by "pre", "model", "post" and their sum "end_to_end".
        stages: of each batch, by the stages within the model; empty where it is one piece.
        peak_bytes: the most that a first call takes beside weights and images.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None


def measure(
    models: Sequence[str],
    makers: Mapping[str, Maker],
    precisions: Sequence[str],
    workloads: Sequence[Workload],
    pipeline: Pipeline,
    weights: str = "none",
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measures implementations of models on workloads.

    Float32 is float32: TF32, which torch lets convolutions use on a GPU, is off.

    Args:
        models: names of the zoo, of detectors without masks.
        makers: implementations by name, first the model itself under `REFERENCE`.
        precisions: what `makers` make beside fp32.
        workloads: what to run on.
        pipeline: what is around the model, and the device.
        weights: see `model_to_time`.
        say: called with a line before each step.

    Returns:
        JSON-serialisable: "hardware", the measured FLOP/s of a matrix product in each precision and
        bytes/s of a copy, and "models", a record for each.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: see `model_to_time`.
    """
    device = pipeline.device
    with full_float32():
        say("measuring a matrix product and a copy")
        hardware = {
            "flops": {
                name: matrix_rate(PRECISIONS[name], device)
                for name in dict.fromkeys(["fp32", *precisions])
            },
            "copy_bandwidth": copy_bandwidth(device),
        }
        records = [
            _Model(name, weights, makers, pipeline, hardware, say).record(workloads)
            for name in models
        ]
    return {"hardware": hardware, "models": records}


class _Model:
    """One model with its implementations."""

    def __init__(self, name: str, weights: str, makers, pipeline: Pipeline, hardware: dict, say):
        self.name = name
        self.pipeline, self.hardware, self.say = pipeline, hardware, say
        self.model = model_to_time(name, weights).to(pipeline.device)
        with torch.device("meta"):
            shapes_only = build_model(**self.model.config).eval()
        self.work: Callable[[tuple[int, ...]], Work] = cache(partial(count_work, shapes_only))
        self.implementations: dict[str, Implementation] = {}
        self.absent: dict[str, str] = {}
        for maker_name, make in makers.items():
            try:
                self.implementations[maker_name] = make(self.model)
            except ImportError as error:
                self.absent[maker_name] = str(error)

    def record(self, workloads: Sequence[Workload]) -> dict:
        samples = [{name: Samples() for name in self.implementations} for _ in workloads]
        answers = {name: [] for name in self.implementations}
        for workload, own in zip(workloads, samples, strict=True):
            self.say(f"{self.name}: checking on {workload}")
            self._answer(workload, own, answers)
        parities = {
            name: compare_outputs(zip(answers[REFERENCE], given, strict=True))
            for name, given in answers.items()
        }
        refused = {}
        for name, parity in parities.items():
            faults = parity.faults(self.implementations[name].precision)
            if faults:
                refused[name] = faults
                del self.implementations[name]
                self.say(f"{self.name}: {name} is not timed: {'; '.join(faults)}")
        timed_workloads = []
        for workload, own in zip(workloads, samples, strict=True):
            self.say(f"{self.name}: timing on {workload}")
            timed_workloads.append(self._timed(workload, own))
        size = published.PAPER.get(self.name)
        return {
            "name": self.name,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "paper": None if size is None else asdict(size),
            "published": [asdict(t) for t in published.TIMES if t.model == self.name],
            "absent": self.absent,
            "refused": refused,
            "parity": {name: asdict(parity) for name, parity in parities.items()},
            "workloads": timed_workloads,
        }

    @torch.inference_mode()
    def _answer(
        self, workload: Workload, samples: dict[str, Samples], answers: dict[str, list[dict]]
    ) -> None:
        """Runs everything on every size of a workload: for the first time, and for the answers."""
        seen = set()
        for sources in workload.batches:
            images, _ = self.pipeline.prepare(sources)
            if images[0].shape in seen:
                continue
            seen.add(images[0].shape)
            for name, implementation in self.implementations.items():
                call = partial(implementation.run, images)
                outputs, peak = with_peak_memory(call, self.pipeline.device)
                # What a captured graph gives is overwritten by its next replay.
                kept = {key: outputs[key].clone() for key in ("pred_logits", "pred_boxes")}
                answers[name].append(kept)
                if peak is not None:
                    samples[name].peak_bytes = max(peak, samples[name].peak_bytes or 0)

    @torch.inference_mode()
    def _timed(self, workload: Workload, samples: dict[str, Samples]) -> dict:
        shapes = []
        for sources in workload.batches:
            for _ in range(workload.rounds):
                for name, implementation in self.implementations.items():
                    images = self._time_once(implementation, sources, samples[name])
                    if workload.staged:
                        self._time_stages(implementation, images, samples[name])
                shapes.append((len(images), *images[0].shape))
        works = [self.work(shape) for shape in shapes]
        sizes = sorted({shape[2:] for shape in shapes})
        return {
            "name": workload.name,
            "batch_size": workload.batch_size,
            "sizes": [list(size) for size in sizes],
            "gmac": float(np.mean([work.flops for work in works])) / 2e9 / workload.batch_size,
            "clocks": clocks(),
            "implementations": [
                self._figures(name, samples[name], works, workload.batch_size)
                for name in self.implementations
            ],
        }

    def _time_once(self, implementation: Implementation, sources, samples: Samples):
        device = self.pipeline.device
        (images, sizes), pre = timed(partial(self.pipeline.prepare, sources), device)
        outputs, model = timed(partial(implementation.run, images), device)
        _, post = timed(partial(self.pipeline.finish, outputs, sizes), device)
        seconds = {"pre": pre, "model": model, "post": post, "end_to_end": pre + model + post}
        for stage, value in seconds.items():
            samples.seconds.setdefault(stage, []).append(value)
        return images

    def _time_stages(self, implementation: Implementation, images, samples: Samples) -> None:
        if implementation.stages is None:
            return
        call = partial(implementation.stages.run, images)
        ends = implementation.stages.ends
        stages = stage_times(call, ends, LAST_STAGE, self.pipeline.device)
        for stage, value in stages.items():
            samples.stages.setdefault(stage, []).append(value)

    def _figures(self, name: str, samples: Samples, works: list[Work], batch_size: int) -> dict:
        implementation = self.implementations[name]
        precision = implementation.precision
        rate = self.hardware["flops"][precision]
        bandwidth = self.hardware["copy_bandwidth"]
        floors = [work.floor(rate, bandwidth, PRECISIONS[precision].itemsize) for work in works]
        seconds = np.array(samples.seconds["model"])
        return {
            "name": name,
            "precision": precision,
            "seconds": {stage: spread(values) for stage, values in samples.seconds.items()},
            "stages": {stage: spread(values) for stage, values in samples.stages.items()},
            "stages_of": None if implementation.stages is None else implementation.stages.of,
            "images_per_second": batch_size / float(np.median(seconds)),
            "flops": float(np.median([work.flops for work in works] / seconds)),
            "floor_seconds": float(np.mean(floors)),
            "share_of_roofline": float(np.median(np.array(floors) / seconds)),
            "peak_bytes": samples.peak_bytes,
        }

"""A benchmark from its request to its record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from ..._environment import conditions, environment, versions
from ...models.catalogue import zoo_entry
from ..engine import check_precision
from ..kept_memory import keep_freed_memory
from .implementations import COMPILE_MODES, WEIGHTS, Maker, default_precisions, makers
from .measure import measure
from .workloads import SHORT_SIDE, Pipeline, fixed_size, preprocess_for, zoo_protocol


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is to be measured.

    Attributes:
        models: names of the zoo, of detectors without masks.
        precisions: of the engine and of what is beside it; None for those that can win on the
            device.
        compile_mode: of torch.compile, see `COMPILE_MODES`; "none" leaves it out.
        weights: "none" for random ones, "zoo" for the published or shipped ones.
        images: of the zoo's protocol; 0 leaves it out.
        coco_path: folder in COCO's layout for these; None for noise of the sizes of val2017 images.
        batch_sizes: of the batches of one size.
        rounds: how often each of these is timed.
        short_side: to which images are brought; the limit of the long side scales with it.
        keep_memory: call `keep_freed_memory` first, from which torch's models gain.
    """

    models: tuple[str, ...] = ("detr_resnet50",)
    precisions: tuple[str, ...] | None = None
    compile_mode: str = "none"
    weights: str = "none"
    images: int = 100
    coco_path: str | None = None
    batch_sizes: tuple[int, ...] = (1,)
    rounds: int = 10
    short_side: int = SHORT_SIDE
    keep_memory: bool = False


def run_benchmark(
    request: BenchmarkRequest,
    device: torch.device,
    peers: Callable[[Sequence[str], torch.device], Mapping[str, Maker]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measures what is asked for.

    Args:
        request: what to measure.
        device: where.
        peers: for precisions and a device, implementations beside those of this package, by name.
        say: called with a line before each step.

    Returns:
        JSON-serialisable: "settings", "device", "environment", "conditions", "versions", and what
        `measure` returns.

    Raises:
        ValueError: something in the request is out of range, unknown or not to be had; the message
            names it.
        FileNotFoundError, ConnectionError: data or weights are not to be had.
    """
    precisions = request.precisions or default_precisions(device)
    _check(request, precisions, device)
    workloads = [fixed_size(size, request.rounds) for size in request.batch_sizes]
    if request.images:
        workloads.append(zoo_protocol(request.images, request.coco_path))
    about = _about(device)
    if request.keep_memory and not keep_freed_memory():
        raise ValueError("keep_memory: this process cannot keep its memory")
    made = makers(precisions, request.compile_mode, request.short_side)
    if peers is not None:
        made |= peers(precisions, device)
    pipeline = Pipeline(preprocess_for(request.short_side), device)
    measured = measure(request.models, made, precisions, workloads, pipeline, request.weights, say)
    settings = {
        **asdict(request),
        "models": list(request.models),
        "batch_sizes": list(request.batch_sizes),
        "precisions": list(precisions),
        # Not where it lies on this machine.
        "coco_path": request.coco_path is not None,
    }
    return {"settings": settings, **about, **measured}


def _check(request: BenchmarkRequest, precisions: Sequence[str], device: torch.device) -> None:
    for name, known in (("compile_mode", COMPILE_MODES), ("weights", WEIGHTS)):
        if getattr(request, name) not in known:
            raise ValueError(
                f"{name} is {getattr(request, name)!r}; expected one of {', '.join(known)}"
            )
    for name, least in (("images", 0), ("rounds", 1), ("short_side", 1)):
        if getattr(request, name) < least:
            raise ValueError(f"{name} is {getattr(request, name)}; expected at least {least}")
    if any(size < 1 for size in request.batch_sizes):
        raise ValueError(f"batch_sizes are {request.batch_sizes}; expected at least 1 each")
    if not request.images and not request.batch_sizes:
        raise ValueError("images is 0 and there are no batch_sizes: there is nothing to time")
    for name in request.models:
        if zoo_entry(name).family != "detr":
            raise ValueError(f"model {name} is no detector without masks, which alone are timed")
    for precision in precisions:
        check_precision(precision, device)


def _about(device: torch.device) -> dict:
    """The machine and the state of things, before anything runs."""
    # Neither how the package was built nor where a toolkit lies decides these times.
    known = {k: v for k, v in environment().items() if k not in ("build", "operations")}
    packages = ("torch", "torchvision", "triton", "transformers", "timm", "openvino")
    return {
        "device": str(device),
        "environment": known,
        "conditions": conditions(),
        "versions": {"detr_fast": known["detr_fast"], **versions(*packages)},
    }

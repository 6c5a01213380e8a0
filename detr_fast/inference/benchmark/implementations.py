"""Who is timed: functions from images to predictions, all made of the same model."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from ...data.transforms import val_transform
from ...models.detr import DETR
from ...models.zoo import build_model
from ..engine import PRECISIONS, Engine, cpu_has_bf16
from .noise import noise_image
from .workloads import SHORT_SIDE

WEIGHTS = ("none", "zoo")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")
REFERENCE = "eager fp32"


@dataclass(frozen=True)
class Stages:
    """Where the stages of a model end, and so where the next ones begin.

    The projection of the backbone's features thus belongs to the encoder, that of its memory to the
    decoder.

    Attributes:
        run: as `Implementation.run`.
        ends: the modules with which "backbone", "encoder" and "decoder" end; `run` runs each once.
        of: "itself", or by what `run` differs from what is timed.
    """

    run: Callable[[list[Tensor]], dict[str, Tensor]]
    ends: Mapping[str, nn.Module]
    of: str = "itself"


@dataclass(frozen=True)
class Implementation:
    """One way to run a model.

    Attributes:
        precision: "fp32", "bf16" or "fp16".
        run: normalised CHW images of one size, on its device, to "pred_logits" and "pred_boxes".
        stages: None where nothing is known but the whole.
    """

    precision: str
    run: Callable[[list[Tensor]], dict[str, Tensor]]
    stages: Stages | None = None


# Makes an implementation of a model in evaluation mode, on the model's device; an ImportError says
# what has to be installed for it.
Maker = Callable[[DETR], Implementation]


def eager(model: DETR) -> Implementation:
    """The model itself: what the others have to agree with."""
    transformer = model.transformer
    ends = {
        "backbone": model.backbone,
        "encoder": transformer.encoder,
        "decoder": transformer.decoder,
    }
    return Implementation("fp32", model, Stages(model, ends))


def engine(model: DETR, precision: str, short_side: int = SHORT_SIDE) -> Implementation:
    """This package's `Engine`, as it comes."""
    made = Engine(model, precision, short_side=short_side)
    staged, of = made, "itself"
    if model.query_embed.weight.is_cuda:
        # A graph is replayed as a whole.
        staged, of = Engine(model, precision, max_graphs=0), "without graphs"
    ends = {
        "backbone": staged.backbone,
        "encoder": staged.transformer.encoder_norm,
        "decoder": staged.transformer.decoder_norm,
    }
    return Implementation(precision, made, Stages(staged, ends, of))


def compiled(model: DETR, precision: str, mode: str) -> Implementation:
    """The model by `torch.compile`; in 16 bits all of it is."""
    model = copy.deepcopy(model)
    if precision != "fp32":
        model = model.to(PRECISIONS[precision], memory_format=torch.channels_last)
    dtype = PRECISIONS[precision]
    run = torch.compile(model, mode=mode)
    return Implementation(precision, lambda images: run(torch.stack(images).to(dtype)))


def makers(
    precisions: Sequence[str], compile_mode: str = "none", short_side: int = SHORT_SIDE
) -> dict[str, Maker]:
    """What of this package and of torch is timed, by name, the reference first.

    Args:
        precisions: of all but the reference.
        compile_mode: one of `COMPILE_MODES`; "none" leaves torch.compile out.
        short_side: to which images are brought.
    """
    made: dict[str, Maker] = {REFERENCE: eager}
    for precision in precisions:
        if compile_mode != "none":
            made[f"compiled {precision}"] = partial(
                compiled, precision=precision, mode=compile_mode
            )
    for precision in precisions:
        made[f"engine {precision}"] = partial(engine, precision=precision, short_side=short_side)
    return made


def default_precisions(device: torch.device) -> list[str]:
    """Those that can win on a device."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"]
    return ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]


def model_to_time(name: str, weights: str) -> DETR:
    """A detector of the zoo in evaluation mode, on the CPU.

    Args:
        name: of a detector without masks.
        weights: "zoo" for the published or shipped ones, "none" for random ones, whose features
            are of order one and differ from image to image, as a trained model's do.

    Raises:
        ValueError: no such name.
        FileNotFoundError, ConnectionError: the zoo's weights are not to be had.
    """
    torch.manual_seed(0)
    model = build_model(name, pretrained=weights == "zoo").eval()
    if weights == "none":
        _settle(model.backbone[0])
    return model


@torch.no_grad()
def _settle(backbone: nn.Module) -> None:
    """Makes random features depend on the image and stay of order one through a hundred layers.

    Normalisations get the statistics of a picture, and residual branches a small weight.
    """

    def take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    handles = []
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(take_statistics))
        elif isinstance(module, Bottleneck | BasicBlock):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            last.weight.fill_(0.2)
    backbone(val_transform(None, None)(noise_image(256, 256, seed=0))[None])
    for handle in handles:
        handle.remove()

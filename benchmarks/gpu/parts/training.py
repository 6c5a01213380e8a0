"""Steps of training in bfloat16, from a batch in page-locked memory to new weights.

Targets are as many as in COCO; an image is as large as its canvas, so that images/s are those of
full images. The share of matcher and criterion is that of losses and their gradients with respect
to the predictions, timed alone on the predictions of such a step.
"""

from functools import cache, partial

import torch
from matching_workloads import COCO_LIKE
from matching_workloads import targets as targets_of
from torch import Tensor, nn
from transformers_detr import transformers_detr

from detr_fast import build_model
from detr_fast.data.batching import collate
from detr_fast.inference.benchmark.implementations import model_to_time
from detr_fast.models.work import count_work
from detr_fast.training.criterion import build_criterion
from detr_fast.training.recipe import Recipe
from detr_fast.training.state import TrainingState
from detr_fast.training.step import TrainStep

from ..part import OURS, Case, Measurement
from ..setting import Setting
from ..timing import peak_mib, seconds_of
from .inference import SIZE

# Forward, and twice as much for the gradients of weights and activations; the frozen first stage
# needs less.
PASSES = 3
NEVER_ENDING = 1000


def cases(setting: Setting) -> list[Case]:
    name, size = "detr_resnet50", setting.size(SIZE, (64, 64))
    listed = []
    for peers in (WHO, COMPILED):
        for images in setting.size((16, 32), (2,)):
            batch = partial(_batch, setting, images, size)
            what = f"training {name}, bf16, {images} images"
            listed += [
                Case(what, who, partial(measure, setting, name, batch))
                for who, measure in peers.items()
            ]
            if peers is WHO:
                what = f"matcher and criterion of a step, {images} images"
                listed.append(Case(what, OURS, partial(_share, setting, name, batch)))
    return listed


def _batch(setting: Setting, images: int, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    targets = targets_of(generator, (COCO_LIKE * images)[:images])
    for number, target in enumerate(targets):
        target["image_id"] = torch.tensor(number)
    samples, targets = collate(
        [(torch.randn(3, *size, generator=generator), target) for target in targets]
    )
    return samples.pin_memory() if setting.on_gpu else samples, targets


def _model(setting: Setting, name: str) -> nn.Module:
    # Its features are of order one, and its memory format is the trainer's.
    model = model_to_time(name, "none").train()
    return model.to(setting.device, memory_format=torch.channels_last)


def _step(model: nn.Module, inner: nn.Module, setting: Setting):
    """A step of the trainer on `model`, whose predictions come from `inner`."""
    recipe = Recipe(amp="bf16", pretrained_backbone=False)
    criterion = build_criterion(model, recipe).to(setting.device)
    state = TrainingState(model, recipe, NEVER_ENDING)
    return TrainStep(inner, criterion, state.optimizer, state.scaler, recipe), criterion


def _ours(setting: Setting, name: str, batch, compiled: bool = False) -> Measurement:
    model = _model(setting, name)
    inner = setting.compile(model) if compiled else model
    step, _ = _step(model, inner, setting)
    given = batch()

    def run():
        if not step([given]).finite:
            raise RuntimeError("a step that is not finite")

    return _of_a_step(setting, name, given[0].tensors, run)


def _of_a_step(setting: Setting, name: str, images: Tensor, run) -> Measurement:
    seconds = seconds_of(run, setting.device)
    return Measurement(
        seconds,
        images=len(images),
        flops=PASSES * _forward_flops(name, tuple(images.shape)),
        peak_mib=peak_mib(run, setting.device),
    )


@cache
def _forward_flops(name: str, shape: tuple[int, ...]) -> int:
    with torch.device("meta"):
        model = build_model(name, aux_loss=False).eval()
    return count_work(model, shape).flops


def _share(setting: Setting, name: str, batch) -> Measurement:
    model = _model(setting, name)
    step, criterion = _step(model, model, setting)
    samples, targets = given = batch()
    whole = seconds_of(lambda: step([given]), setting.device)
    moved = [{k: v.to(setting.device) for k, v in target.items()} for target in targets]
    normalizer = criterion.normalizer(moved, model.num_queries, device=setting.device)
    with torch.no_grad(), torch.autocast(setting.device, dtype=torch.bfloat16):
        outputs = model(samples.to(setting.device))
    layers = [
        {key: layer[key].requires_grad_() for key in ("pred_logits", "pred_boxes")}
        for layer in (*outputs["aux_outputs"], outputs)
    ]
    leaves = [leaf for layer in layers for leaf in layer.values()]
    outputs = layers[-1] | {"aux_outputs": layers[:-1]}

    def run():
        total = criterion.total(criterion(outputs, moved, normalizer))
        return torch.autograd.grad(total, leaves)

    seconds = seconds_of(run, setting.device)
    return Measurement(seconds, images=len(targets), extra={"share %": 100 * seconds / whole})


def _transformers(setting: Setting, name: str, batch) -> Measurement:
    """The same model, batch and optimizer, with its own losses, of all layers as ours are."""
    samples, targets = batch()
    model = transformers_detr(_model(setting, name), "sdpa").train()
    model.config.auxiliary_loss = True
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=1e-4, fused=True
    )

    def run():
        images = samples.to(setting.device, non_blocking=True)
        labels = [
            {
                "class_labels": target["labels"].to(setting.device, non_blocking=True),
                "boxes": target["boxes"].to(setting.device, non_blocking=True),
            }
            for target in targets
        ]
        with torch.autocast(setting.device, dtype=torch.bfloat16):
            loss = model(images.tensors, pixel_mask=(~images.mask).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return _of_a_step(setting, name, samples.tensors, run)


WHO = {OURS: _ours, "transformers": _transformers}
COMPILED = {"the model by torch.compile(mode='max-autotune')": partial(_ours, compiled=True)}

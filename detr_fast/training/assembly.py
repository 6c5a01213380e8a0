"""From what a user asks for to a trainer: recipe, data, model and start, decided in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..data.build import build_dataset
from ..data.label_map import LabelMap
from ..data.transforms import CROP_RANGE, CROP_SCALES, TRAIN_SCALES, train_transform, val_transform
from ..models.catalogue import panoptic_name, zoo_entry
from ..models.checkpoint import Checkpoint, load_checkpoint, load_weights
from ..models.zoo import build_model
from . import distributed
from .overfit import images_with_objects, overfit_recipe
from .recipe import Recipe, preset
from .trainer import Trainer

_COCO_SHORT_SIDE = 800
# What a checkpoint does not fix: everything else of a recipe stands in its optimizer, its schedule
# or its weights.
_CHANGEABLE = {
    *("epochs", "lr_drop", "clip_max_norm", "batch_size", "accumulate", "amp", "nonfinite"),
    *("set_cost_class", "set_cost_bbox", "set_cost_giou"),
    *("bbox_loss_coef", "giou_loss_coef", "eos_coef", "aux_repeats"),
    *("mask_loss_coef", "dice_loss_coef", "mask_resolution"),
    *("augment", "short_side", "max_size", "train_images", "val_images"),
}


_KEPT_BY_RESUME = (
    *("dataset_file", "coco_path", "coco_panoptic_path", "frozen_weights"),
    *("overfit", "seed", "eval_every"),
)


@dataclass(frozen=True)
class TrainingRequest:
    """What a user asks for. What is None or absent is decided by the preset or the checkpoint.

    Attributes:
        preset: Name of the recipe to start from. By default "finetune" with a data set; without
            one "shapes_panoptic" where masks are asked for, and "shapes" otherwise.
        changes: Fields of the recipe to change; `model_options` is merged into the preset's.
        weights: Path, URL or zoo name of weights to start from; "none" for none.
        resume: Path or URL of a checkpoint to go on from.
        frozen_weights: The same of a detector that stays as it is, while a mask head is trained on
            it.
        dataset_file: A kind of data set; see `data.build_dataset`. Panoptic ones need masks.
        coco_path: Folder of a COCO data set.
        coco_panoptic_path: Folder of its panoptic annotations, where that is another.
        overfit: Number of images to learn by heart and to evaluate on.
        output_dir: See `Trainer`, as are the following.
        start_epoch: Same.
        seed: Same.
        num_workers: Same; by default 2 with a GPU and 0 without.
        eval_every: Same.
        max_steps: Same.
        check_data: Same.
    """

    preset: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    resume: str | None = None
    frozen_weights: str | None = None
    dataset_file: str | None = None
    coco_path: str | None = None
    coco_panoptic_path: str | None = None
    overfit: int | None = None
    output_dir: str | None = None
    start_epoch: int = 0
    seed: int | None = None
    num_workers: int | None = None
    eval_every: int | None = None
    max_steps: int | None = None
    check_data: bool = True


def open_device(name: str | None) -> torch.device:
    """Joins the processes that torchrun started, if it did, and chooses this one's device.

    Args:
        name: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one. Of several processes
            each takes the GPU of its own number.

    Raises:
        ValueError: There is no such device; see also `distributed.init_from_env`.
    """
    try:
        asked = None if name is None else torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is '{name}'; expected cpu, cuda or cuda:N") from error
    if asked is not None and asked.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (asked.index or 0) >= count:
            raise ValueError(f"device is '{name}' but torch sees {count} CUDA devices")
    own = distributed.init_from_env("gloo" if name == "cpu" else None)
    return own if asked is None or distributed.world_size() > 1 else asked


def build_trainer(
    request: TrainingRequest, device: torch.device, say: Callable[[str], None] = print
) -> Trainer:
    """Builds recipe, data, model and trainer.

    Args:
        request: What is asked for.
        device: Device to train on.
        say: Called with a line about each decision.

    Raises:
        ValueError: The request contradicts itself, the checkpoint or the data; see `Trainer`.
        FileNotFoundError: Data or weights are not where they are said to be.
        ConnectionError: Weights have to be downloaded and cannot be.
    """
    if request.resume is not None:
        return _resumed(request, device, say)
    name = request.preset or _default_preset(request)
    recipe = _with_masks(_changed(preset(name), request.changes), request)
    if request.overfit is not None:
        recipe = _changed(overfit_recipe(recipe, request.overfit), request.changes)
    train, val = _datasets(request, recipe, None)
    model = _fresh_model(request, recipe, train.label_map, say)
    recipe = _with_model_of(recipe, model)
    say(f"preset {name}: {recipe.model} on {len(train)} images, {recipe.epochs} epochs")
    return _trainer(request, recipe, model, train, val, device)


def _resumed(request: TrainingRequest, device: torch.device, say: Callable[[str], None]) -> Trainer:
    checkpoint = load_checkpoint(request.resume)
    args = checkpoint.extra.get("args") or {}
    if checkpoint.config is None:
        raise ValueError(
            f"{request.resume} does not say which model it is of; it cannot be resumed"
        )
    if request.weights is not None:
        raise ValueError("resume and weights are both given; resume already has its weights")
    model = build_model(**checkpoint.config)
    stored = _with_model_of(Recipe().with_known_fields(args), model)
    recipe = _changed(stored, request.changes)
    for name, value in recipe.to_dict().items():
        before = getattr(stored, name)
        if value != before and name not in _CHANGEABLE:
            raise ValueError(
                f"{name} is {before!r} in {request.resume} and cannot become {value!r} when "
                "resuming; start a new training from its weights with --weights"
            )
    kept = {
        name: args[name]
        for name in _KEPT_BY_RESUME
        if getattr(request, name) is None and args.get(name) is not None
    }
    if request.dataset_file in ("shapes", "shapes_panoptic"):
        kept.pop("coco_path", None)
        kept.pop("coco_panoptic_path", None)
    request = TrainingRequest(**{**vars(request), **kept})
    label_map = None
    if checkpoint.label_map is not None:
        label_map = LabelMap.from_dict(checkpoint.label_map)
    train, val = _datasets(request, recipe, label_map)
    if len(train.label_map) != model.num_classes:
        raise ValueError(
            f"{request.resume} has {model.num_classes} classes, the data set "
            f"{len(train.label_map)}; resume on the data it was trained on, or start a new "
            "training from its weights with --weights"
        )
    model.label_map = train.label_map
    trainer = _trainer(request, recipe, model, train, val, device, checkpoint)
    say(f"resuming {request.resume} in epoch {trainer.state.epoch + 1} of {recipe.epochs}")
    return trainer


def _trainer(
    request: TrainingRequest,
    recipe: Recipe,
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    # An epoch of a few images is short beside its evaluation.
    eval_every = request.eval_every or (max(1, recipe.epochs // 10) if request.overfit else 1)
    num_workers = request.num_workers
    if num_workers is None:
        # On a CPU loaders would take the cores that the model needs.
        num_workers = 2 if device.type == "cuda" else 0
    coco_path = request.coco_path
    return Trainer(
        model,
        recipe,
        train,
        val,
        output_dir=request.output_dir,
        device=device,
        resume=checkpoint,
        resume_path=request.resume,
        start_epoch=request.start_epoch,
        seed=42 if request.seed is None else request.seed,
        num_workers=num_workers,
        eval_every=eval_every,
        max_steps=request.max_steps,
        # Generated data have no faults, and to look for them all have to be generated.
        check_data=request.check_data and coco_path is not None,
        args={
            "dataset_file": _dataset_kind(request, recipe),
            "coco_path": _resolved(coco_path),
            "coco_panoptic_path": _resolved(request.coco_panoptic_path),
            "overfit": request.overfit,
            "weights": request.weights,
            "frozen_weights": request.frozen_weights,
            "eval_every": eval_every,
        },
    )


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    changes = dict(changes)
    if "model_options" in changes:
        changes["model_options"] = {**recipe.model_options, **changes["model_options"]}
    return recipe.replace(**changes)


def _with_model_of(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe, saying of the model what the model says of itself."""
    options = {k: v for k, v in model.config.items() if k not in ("name", "num_classes")}
    kept = {key: options.pop(key) for key in ("dropout", "aux_loss") if key in options}
    options.pop("train_backbone", None)
    return recipe.replace(model=model.config["name"], model_options=options, **kept)


def _datasets(
    request: TrainingRequest, recipe: Recipe, label_map: LabelMap | None
) -> tuple[Dataset, Dataset]:
    shapes = request.coco_path is None

    def build(split: str, augment: bool) -> Dataset:
        length = {"train": recipe.train_images, "val": recipe.val_images}[split]
        # Every generated image has objects, so that the first ones will do.
        length = request.overfit or length
        return build_dataset(
            _dataset_kind(request, recipe),
            split,
            coco_path=request.coco_path,
            coco_panoptic_path=request.coco_panoptic_path,
            masks=recipe.masks,
            transform=_transform(recipe, augment),
            label_map=label_map,
            length=length if shapes else None,
        )

    if request.overfit is None:
        return build("train", recipe.augment), build("val", False)
    images = images_with_objects(build("train", False), request.overfit)
    return images, images


def _transform(recipe: Recipe, augment: bool) -> nn.Module:
    if not augment:
        return val_transform(recipe.short_side, recipe.max_size)
    if recipe.short_side is None:
        return train_transform(scales=None)

    def scaled(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(round(size * recipe.short_side / _COCO_SHORT_SIDE) for size in sizes)

    return train_transform(
        scaled(TRAIN_SCALES), recipe.max_size, scaled(CROP_RANGE), scaled(CROP_SCALES)
    )


def _fresh_model(
    request: TrainingRequest, recipe: Recipe, label_map: LabelMap, say: Callable[[str], None]
) -> nn.Module:
    """A model for these classes, with the start that the request or the recipe asks for."""
    if recipe.model == "detr_demo":
        raise ValueError(
            "detr_demo takes neither padded batches nor auxiliary losses, and is not for "
            "training; choose another model"
        )
    asked = {
        **request.changes.get("model_options", {}),
        **{k: v for k, v in request.changes.items() if k in ("dropout", "aux_loss")},
    }
    if request.frozen_weights is not None:
        return _on_frozen_detector(request.frozen_weights, recipe, label_map, say)
    source = request.weights or (recipe.model if recipe.pretrained else "none")
    common = {"num_classes": len(label_map), "train_backbone": recipe.lr_backbone > 0}
    if source == "none":
        model = _model_from_scratch(recipe, common)
    else:
        checkpoint = load_checkpoint(source)
        config = checkpoint.config or {"name": recipe.model, **recipe.model_options}
        has_masks = zoo_entry(config["name"]).family == "segmentation"
        if recipe.masks and not has_masks:
            config = {**config, "name": panoptic_name(config["name"])}
        elif has_masks and not recipe.masks:
            raise ValueError(
                f"{source} has a mask head; train it with --masks, on data that have masks"
            )
        model = build_model(**{**config, **asked, **common})
        into = model.detr if recipe.masks and not has_masks else model
        say(f"weights of {source}: {load_weights(into, checkpoint.model)}")
    model.label_map = label_map
    return model


def _on_frozen_detector(
    source: str, recipe: Recipe, label_map: LabelMap, say: Callable[[str], None]
) -> nn.Module:
    """A fresh mask head on a detector whose weights stay as they are."""
    checkpoint = load_checkpoint(source)
    config = checkpoint.config or {"name": recipe.model.removesuffix("_panoptic")}
    if zoo_entry(config["name"]).family != "detr":
        raise ValueError(f"frozen_weights {source} are of {config['name']}; expected a detector")
    config = {**config, "name": panoptic_name(config["name"]), "freeze_detr": True}
    model = build_model(**config)
    if model.num_classes != len(label_map):
        raise ValueError(
            f"the detector of {source} has {model.num_classes} classes, the data set "
            f"{len(label_map)}: train a detector on these classes first, boxes of stuff included, "
            "or train both at once with --weights"
        )
    say(f"frozen weights of {source}: {load_weights(model.detr, checkpoint.model, strict=True)}")
    model.label_map = label_map
    return model


def _default_preset(request: TrainingRequest) -> str:
    if request.coco_path is not None:
        return "finetune"
    asked = request.changes.get("masks") or request.frozen_weights
    return "shapes_panoptic" if asked or request.dataset_file == "shapes_panoptic" else "shapes"


def _with_masks(recipe: Recipe, request: TrainingRequest) -> Recipe:
    """The recipe with the panoptic model where anything in the request means masks."""
    panoptic = request.dataset_file in ("coco_panoptic", "shapes_panoptic")
    if request.frozen_weights is not None and request.weights is not None:
        raise ValueError("weights and frozen_weights are both given; name one of them")
    if not (recipe.masks or panoptic or request.frozen_weights):
        return recipe
    return recipe.replace(masks=True, model=panoptic_name(recipe.model))


def _dataset_kind(request: TrainingRequest, recipe: Recipe) -> str:
    if request.dataset_file is not None:
        return request.dataset_file
    if request.coco_path is None:
        return "shapes_panoptic" if recipe.masks else "shapes"
    return "coco" if request.coco_panoptic_path is None else "coco_panoptic"


def _resolved(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _model_from_scratch(recipe: Recipe, common: Mapping[str, Any]) -> nn.Module:
    options = {**recipe.model_options, "dropout": recipe.dropout, "aux_loss": recipe.aux_loss}
    backbone = {**zoo_entry(recipe.model).options, **options}.get("backbone", "resnet50")
    # Nobody trained the tiny one on ImageNet.
    imagenet = recipe.pretrained_backbone and backbone != "resnet_tiny"
    try:
        return build_model(
            recipe.model, **options, **common, backbone_weights="imagenet" if imagenet else None
        )
    except OSError as error:
        raise ConnectionError(
            f"the ImageNet weights of {backbone} could not be downloaded ({error}). Connect once, "
            "or put them into torch's cache of hub checkpoints, or train without them by "
            "--no_pretrained_backbone, which takes far longer"
        ) from error

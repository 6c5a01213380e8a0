"""`detr-fast train`: trains a model, on generated shapes where no data set is given."""

import argparse
import dataclasses

from ..data.kinds import KINDS
from ..training.recipe import (
    AMP_MODES,
    MASK_RESOLUTIONS,
    NONFINITE_POLICIES,
    PRESETS,
    SCHEDULES,
)

# Options of the model itself; with `dropout` and `aux_loss` they are those of `build_model`.
_MODEL_OPTIONS = {
    "backbone": (str, "a torchvision ResNet, or resnet_tiny"),
    "position_embedding": (str, "sine or learned"),
    "enc_layers": (int, "encoder layers"),
    "dec_layers": (int, "decoder layers"),
    "dim_feedforward": (int, "hidden width of the feed-forward blocks"),
    "hidden_dim": (int, "width of the transformer"),
    "nheads": (int, "attention heads"),
    "num_queries": (int, "object queries: the most objects found in an image"),
}
_MODEL_SWITCHES = {
    "dilation": "dilate the last stage of the backbone (DC5)",
    "pre_norm": "normalise before each block of the transformer",
    "exact_batches": "give each image of a batch what it gets alone, whatever its padding",
}
_RECIPE_OPTIONS = {
    "model": (str, "name of the zoo"),
    "epochs": (int, "passes over the training set"),
    "batch_size": (int, "images in one forward pass of one process"),
    "accumulate": (int, "forward passes in one optimizer step"),
    "lr": (float, "learning rate of everything but the backbone"),
    "lr_backbone": (float, "learning rate of the backbone; 0 freezes it"),
    "weight_decay": (float, "weight decay of AdamW"),
    "lr_drop": (int, "epochs between two drops of the learning rate (step schedule)"),
    "warmup": (float, "share of the steps in which the learning rate rises (one_cycle schedule)"),
    "clip_max_norm": (float, "largest norm of the gradient; 0 does not clip"),
    "dropout": (float, "dropout in the transformer"),
    "set_cost_class": (float, "matching cost of the class"),
    "set_cost_bbox": (float, "matching cost of the L1 distance of boxes"),
    "set_cost_giou": (float, "matching cost of the generalised IoU"),
    "bbox_loss_coef": (float, "weight of the L1 loss"),
    "giou_loss_coef": (float, "weight of the generalised IoU loss"),
    "mask_loss_coef": (float, "weight of the focal loss of masks"),
    "dice_loss_coef": (float, "weight of the dice loss of masks"),
    "eos_coef": (float, "weight of the no-object class"),
    "aux_repeats": (int, "queries of an auxiliary layer that learn each target"),
    "short_side": (int, "short side of the images in pixels; random sizes scale with it"),
    "max_size": (int, "largest long side of the images in pixels"),
    "train_images": (int, "number of generated training images"),
    "val_images": (int, "number of generated validation images"),
}
_RECIPE_CHOICES = {
    "schedule": (SCHEDULES, "schedule of the learning rates"),
    "amp": (AMP_MODES, "autocast of the model"),
    "mask_resolution": (MASK_RESOLUTIONS, "where masks are compared with their targets"),
    "nonfinite": (NONFINITE_POLICIES, "what to do with a step that is NaN or infinite"),
}


# AP50 from which on images count as learned by heart.
_LEARNED = 0.9


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model",
        description="Trains a model and evaluates it after every epoch. Without data it learns "
        "generated shapes; with data it starts from published weights unless told otherwise. What "
        "is not given comes from the preset, or with --resume from the checkpoint.",
        argument_default=argparse.SUPPRESS,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--coco_path", help="folder of a data set in COCO's layout")
    data.add_argument("--dataset_file", choices=KINDS, help="kind of data set")
    data.add_argument(
        "--coco_panoptic_path",
        help="folder of the panoptic annotations, where that is not --coco_path",
    )
    data.add_argument(
        "--overfit", type=int, metavar="N", help="learn N images by heart, to test data and model"
    )

    run = parser.add_argument_group("run")
    run.add_argument("--preset", choices=list(PRESETS), help="recipe to start from")
    run.add_argument("--weights", help="path, URL or zoo name of weights to start from, or none")
    run.add_argument(
        "--frozen_weights",
        help="weights of a detector that stays as it is, while a mask head is trained on it",
    )
    run.add_argument("--resume", help="checkpoint to go on from: a run's weights/last.pth")
    run.add_argument("--start_epoch", type=int, help="index of the first epoch")
    run.add_argument("--eval", action="store_true", help="evaluate only, and print the figures")
    run.add_argument("--output_dir", help="run folder; by default the next free runs/train*")
    run.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    run.add_argument("--seed", type=int, help="seed of everything random (42)")
    run.add_argument("--num_workers", type=int, help="loader processes (2 with a GPU, else 0)")
    run.add_argument("--eval_every", type=int, help="epochs between two evaluations (1)")
    run.add_argument("--max_steps", type=int, help="stop after so many optimizer steps")
    run.add_argument(
        "--no_check", dest="check_data", action="store_false", help="do not check the data first"
    )

    recipe = parser.add_argument_group("recipe")
    for name, (kind, text) in _RECIPE_OPTIONS.items():
        recipe.add_argument(f"--{name}", type=kind, help=text)
    for name, (choices, text) in _RECIPE_CHOICES.items():
        recipe.add_argument(f"--{name}", choices=choices, help=text)
    recipe.add_argument(
        "--masks", action="store_true", help="train a mask head too, on data that have masks"
    )
    recipe.add_argument(
        "--no_aux_loss",
        dest="aux_loss",
        action="store_false",
        help="supervise the last decoder layer only",
    )
    recipe.add_argument(
        "--no_augment", dest="augment", action="store_false", help="no random flips, sizes, crops"
    )
    recipe.add_argument(
        "--no_pretrained_backbone",
        dest="pretrained_backbone",
        action="store_false",
        help="start from a random backbone, not from ImageNet's",
    )

    model = parser.add_argument_group("model")
    for name, (kind, text) in _MODEL_OPTIONS.items():
        model.add_argument(f"--{name}", type=kind, help=text)
    for name, text in _MODEL_SWITCHES.items():
        model.add_argument(f"--{name}", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    from ..evaluation.report import render
    from ..training import distributed
    from ..training.assembly import build_trainer, open_device

    device = open_device(getattr(args, "device", None))
    try:
        say = print if distributed.is_main_process() else _say_nothing
        trainer = build_trainer(_request(vars(args)), device, say)
        if getattr(args, "eval", False):
            say(render(trainer.evaluate()))
            return 0
        result = trainer.fit()
        if getattr(args, "overfit", None) and not result.exit_code:
            say(_verdict(result.record["test_coco_eval_bbox"][1]))
        return result.exit_code
    finally:
        distributed.shutdown()


def _request(given: dict):
    """The arguments as a `TrainingRequest`; only what was given is in `given`."""
    from ..training.assembly import TrainingRequest

    options = {k: given[k] for k in (*_MODEL_OPTIONS, *_MODEL_SWITCHES) if k in given}
    switches = ("aux_loss", "augment", "pretrained_backbone", "masks")
    fields = (*_RECIPE_OPTIONS, *_RECIPE_CHOICES, *switches)
    changes = {k: given[k] for k in fields if k in given}
    if options:
        changes["model_options"] = options
    known = {f.name for f in dataclasses.fields(TrainingRequest)}
    return TrainingRequest(
        changes=changes, **{k: value for k, value in given.items() if k in known}
    )


def _say_nothing(line: str) -> None:
    """What processes other than the first print."""


def _verdict(ap50: float) -> str:
    if ap50 >= _LEARNED:
        return f"AP50 {ap50:.2f} on the images learned by heart: data, model and losses agree"
    return (
        f"AP50 {ap50:.2f} on the images that were to be learned by heart: look at the boxes of the "
        "data, or give it more --epochs"
    )

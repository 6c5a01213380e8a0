"""Recipes: every number that decides what training does, and the presets that are known to work.

A recipe says nothing about where data lies or on what machine it runs, so that it can be stored in
a run folder and a checkpoint, and read back. This module does not need torch.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEDULES = ("step", "one_cycle")
AMP_MODES = ("no", "bf16", "fp16")
NONFINITE_POLICIES = ("stop", "skip")
MASK_RESOLUTIONS = ("prediction", "image")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. The defaults are those of DETR (Carion et al. 2020, section 4).

    Attributes:
        model: Name of the zoo.
        model_options: Options of `build_model` beyond `dropout` and `aux_loss`.
        pretrained: Whether to start from the published weights of the model.
        pretrained_backbone: Whether to start from a backbone trained on ImageNet, where not from
            published weights.
        dropout: Dropout of the transformer.
        aux_loss: Whether every decoder layer is supervised, not only the last.
        aux_repeats: How many queries of an auxiliary layer learn each target; see `SetCriterion`.
        lr: Learning rate of everything but the backbone.
        lr_backbone: Learning rate of the backbone; 0 freezes it.
        weight_decay: Decoupled weight decay of AdamW.
        epochs: Passes over the training set.
        schedule: "step" multiplies the rates by 0.1 every `lr_drop` epochs; "one_cycle" raises
            them from 1/25 over the first `warmup` share of all steps and then lowers them to
            nearly 0 along a cosine (Smith and Topin 2018, arXiv 1708.07120).
        lr_drop: Epochs between two drops of the step schedule.
        warmup: Share of all steps in which the one-cycle schedule rises, in (0, 1).
        clip_max_norm: Largest 2-norm of the whole gradient; 0 does not clip.
        batch_size: Images in one forward pass of one process.
        accumulate: Forward passes in one step. The step is that of a batch of
            `batch_size * accumulate`, the normalisation of the loss included; only batch
            normalisation, where a model has it, sees one forward pass at a time.
        amp: Autocast of the model: "no", "bf16" or "fp16". Losses are float32 always.
        set_cost_class: Weight of the class probability in the matching cost.
        set_cost_bbox: Weight of the L1 distance of boxes in the matching cost.
        set_cost_giou: Weight of the generalised IoU in the matching cost.
        bbox_loss_coef: Weight of the L1 loss.
        giou_loss_coef: Weight of the generalised IoU loss.
        eos_coef: Weight of the no-object class in the classification loss.
        masks: Whether a mask head is trained on top of the detector: the model becomes the panoptic
            one of the zoo.
        mask_loss_coef: Weight of the focal loss of masks.
        dice_loss_coef: Weight of the dice loss of masks.
        mask_resolution: Where masks are compared; see `training.mask_losses`.
        nonfinite: What to do with a step whose predictions, loss or gradient hold NaN or Inf:
            "stop" ends the training, "skip" leaves the weights as they were and goes on.
        augment: Whether training images are flipped, resized and cropped at random; otherwise
            they are treated as validation images are.
        short_side: Short side of validation images in pixels, to which the random sizes of
            training are in the proportion that they are to 800; None keeps images as they are.
        max_size: Largest long side after resizing, in pixels.
        train_images: Number of generated images to train on where no data set is given.
        val_images: Number of generated images to evaluate on where no data set is given.
    """

    model: str = "detr_resnet50"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    pretrained_backbone: bool = True
    dropout: float = 0.1
    aux_loss: bool = True
    aux_repeats: int = 1
    lr: float = 1e-4
    lr_backbone: float = 1e-5
    weight_decay: float = 1e-4
    epochs: int = 300
    schedule: str = "step"
    lr_drop: int = 200
    warmup: float = 0.1
    clip_max_norm: float = 0.1
    batch_size: int = 2
    accumulate: int = 1
    amp: str = "no"
    set_cost_class: float = 1.0
    set_cost_bbox: float = 5.0
    set_cost_giou: float = 2.0
    bbox_loss_coef: float = 5.0
    giou_loss_coef: float = 2.0
    eos_coef: float = 0.1
    masks: bool = False
    mask_loss_coef: float = 1.0
    dice_loss_coef: float = 1.0
    mask_resolution: str = "prediction"
    nonfinite: str = "stop"
    augment: bool = True
    short_side: int | None = 800
    max_size: int = 1333
    train_images: int = 1000
    val_images: int = 200

    def __post_init__(self) -> None:
        for name, choices in (
            ("schedule", SCHEDULES),
            ("amp", AMP_MODES),
            ("nonfinite", NONFINITE_POLICIES),
            ("mask_resolution", MASK_RESOLUTIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"recipe: {name} is {getattr(self, name)!r}; expected one of "
                    f"{', '.join(map(repr, choices))}"
                )
        for name in ("epochs", "lr_drop", "batch_size", "accumulate", "aux_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe: {name} is {getattr(self, name)}; expected at least 1")
        for name in ("lr", "lr_backbone", "weight_decay", "clip_max_norm", "eos_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"recipe: {name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recipe: dropout is {self.dropout}; expected a value in [0, 1)")
        if not 0 < self.warmup < 1:
            raise ValueError(f"recipe: warmup is {self.warmup}; expected a share in (0, 1)")
        object.__setattr__(self, "model_options", dict(self.model_options))

    def replace(self, **changes: Any) -> "Recipe":
        """A recipe with some fields changed.

        Raises:
            ValueError: A name that is no field, or a value out of its range.
        """
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: safe in YAML and in weights-only checkpoints."""
        return dataclasses.asdict(self)

    def with_known_fields(self, state: Mapping[str, Any]) -> "Recipe":
        """A recipe with the fields that `state` has, whatever else it has.

        It reads the options that checkpoints carry, those of the original DETR included, which has
        the same names.
        """
        known = {f.name for f in dataclasses.fields(self)}
        return self.replace(**{name: value for name, value in state.items() if name in known})

    def loss_weights(self) -> dict[str, float]:
        """Weights of the losses of boxes and classes of one decoder layer, by name."""
        return {
            "loss_ce": 1.0,
            "loss_bbox": self.bbox_loss_coef,
            "loss_giou": self.giou_loss_coef,
        }

    def mask_loss_weights(self) -> dict[str, float]:
        """Weights of the losses of masks, which only the last layer has, by name."""
        return {"loss_mask": self.mask_loss_coef, "loss_dice": self.dice_loss_coef}


# A small model from scratch on generated shapes, on a CPU.
_SHAPES = Recipe(
    model="detr_tiny",
    pretrained_backbone=False,
    dropout=0.0,
    # Without weights from ImageNet the backbone has the most to learn, and classes come last.
    lr=1e-3,
    lr_backbone=2e-3,
    bbox_loss_coef=2.0,
    giou_loss_coef=1.0,
    aux_repeats=3,
    epochs=13,
    schedule="one_cycle",
    warmup=0.05,
    batch_size=16,
    short_side=None,
    train_images=8000,
    val_images=300,
)

PRESETS: dict[str, Recipe] = {
    # The paper's two schedules: 42.0 AP for ResNet-50 after 500 epochs.
    "paper_300": Recipe(epochs=300, lr_drop=200),
    "paper_500": Recipe(epochs=500, lr_drop=400),
    # From published weights to a data set of one's own.
    "finetune": Recipe(pretrained=True, epochs=50, lr_drop=40),
    "shapes": _SHAPES,
    # The same with stuff behind the shapes, and a mask for every segment.
    "shapes_panoptic": dataclasses.replace(
        _SHAPES,
        model="detr_tiny_panoptic",
        masks=True,
        mask_loss_coef=10.0,
        dice_loss_coef=2.0,
        # Masks of 16 x 16 cells gain most from edges that fall between cells.
        mask_resolution="image",
    ),
}


def preset(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        ValueError: There is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset '{name}'; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


def _check_names(state: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in state:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"a recipe has no field '{name}'{hint}")

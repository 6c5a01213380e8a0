"""Names to models: `build_model`."""

import inspect

from ..data.label_map import COCO_LABEL_MAP, COCO_PANOPTIC_LABEL_MAP, LabelMap
from .catalogue import ZooEntry, zoo_entry
from .checkpoint import Checkpoint, load_checkpoint, load_weights
from .demo import DETRDemo
from .detr import DETR
from .segmentation import DETRSegmentation
from .suggestion import did_you_mean

_FAMILIES = {"detr": DETR, "segmentation": DETRSegmentation, "demo": DETRDemo}
# What may differ from the options that pretrained weights were trained with.
_SIZES = {"num_classes", "num_queries"}
_ADAPTABLE = _SIZES | {"dropout", "aux_loss", "train_backbone", "freeze_detr", "attention_gain"}
# Where the first weights come from is no property of the model that was built.
_NOT_IN_CONFIG = {"backbone_weights"}


def build_model(
    name: str, *, pretrained: bool = False, num_classes: int | None = None, **options
) -> DETR | DETRSegmentation | DETRDemo:
    """Builds a model of the zoo.

    Args:
        name: "detr_resnet50", "detr_resnet50_dc5", "detr_resnet101", "detr_resnet101_dc5",
            "detr_resnet50_panoptic", "detr_resnet50_dc5_panoptic", "detr_resnet101_panoptic",
            "detr_demo", "detr_tiny" or "detr_tiny_panoptic".
        pretrained: load the model's published weights (downloaded once) or shipped ones. Where
            `num_classes` or `num_queries` differs from theirs, the class head or the queries are
            re-initialised; `model.load_report` says so and a warning is logged.
        num_classes: classes without no-object; by default those of the weights, or of the zoo.
        **options: see `DETR`, for panoptic models also `DETRSegmentation`, for "detr_demo"
            `DETRDemo`.

    Returns:
        The model on the CPU in training mode, with `config` such that `build_model(**config)`
        builds it again, `label_map` where pretrained weights bring their classes, and
        `load_report`, a `LoadReport` or None.

    Raises:
        ValueError: unknown name, an option out of its range, or with `pretrained` an option that
            contradicts the weights.
        TypeError: unknown option.
        FileNotFoundError, ConnectionError: see `load_checkpoint`.
    """
    entry = zoo_entry(name)
    family = _FAMILIES[entry.family]
    defaults = _defaults(family)
    for option in options:
        if option not in defaults:
            raise TypeError(f"{name} has no option {option!r}; {did_you_mean(option, defaults)}.")
    checkpoint = load_checkpoint(name) if pretrained else None
    trained = {**defaults, **entry.options}
    if checkpoint is not None:
        trained.update({k: v for k, v in (checkpoint.config or {}).items() if k in defaults})
    if num_classes is not None:
        options["num_classes"] = num_classes
    config = {**trained, **options}
    if checkpoint is not None:
        _refuse_contradictions(entry, trained, config)
    model = family(**config)
    model.config = {
        "name": name,
        **{option: value for option, value in config.items() if option not in _NOT_IN_CONFIG},
    }
    model.load_report = None
    if checkpoint is not None:
        resized = any(config[option] != trained[option] for option in _SIZES)
        model.load_report = load_weights(model, checkpoint.model, strict=not resized)
        if config["num_classes"] == trained["num_classes"]:
            model.label_map = _label_map(entry, checkpoint)
    return model


def _defaults(family: type) -> dict:
    """Every option of a family with its default, those it hands on to its detector included."""
    parameters = dict(inspect.signature(family).parameters)
    if family is DETRSegmentation:
        parameters = {**parameters, **inspect.signature(DETR).parameters}
    named = {k: v for k, v in parameters.items() if v.kind is not inspect.Parameter.VAR_KEYWORD}
    return {option: parameter.default for option, parameter in named.items()}


def _label_map(entry: ZooEntry, checkpoint: Checkpoint) -> LabelMap | None:
    if checkpoint.label_map is not None:
        return LabelMap.from_dict(checkpoint.label_map)
    # The original's files name no classes; all of them were trained on COCO's ids.
    if entry.url is None:
        return None
    return COCO_PANOPTIC_LABEL_MAP if entry.family == "segmentation" else COCO_LABEL_MAP


def _refuse_contradictions(entry: ZooEntry, trained: dict, config: dict) -> None:
    for option, value in trained.items():
        if option in _ADAPTABLE | _NOT_IN_CONFIG or config[option] == value:
            continue
        raise ValueError(
            f"the weights of {entry.name} were trained with {option}={value!r}; got "
            f"{config[option]!r}. Use that value, or pretrained=False; "
            f"only {', '.join(sorted(_ADAPTABLE & trained.keys()))} may differ."
        )

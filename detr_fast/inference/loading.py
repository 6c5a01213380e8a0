"""From a name or a checkpoint to a model that is ready to detect."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..data.label_map import COCO_LABEL_MAP, LabelMap
from ..data.transforms import MAX_SIZE
from ..models.checkpoint import load_checkpoint, load_weights
from ..models.zoo import build_model


@dataclass(frozen=True)
class Preprocess:
    """To what size images are brought before the model sees them.

    Attributes:
        short_side: length of the short side in pixels, None for the image's own size.
        max_size: what the long side may reach at most, which then decides; None for no limit.
    """

    short_side: int | None = 800
    max_size: int | None = MAX_SIZE


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it.

    Attributes:
        model: in evaluation mode, on the CPU.
        label_map: from the model's classes to category ids and names.
        preprocess: the sizes that the model is evaluated with.
    """

    model: nn.Module
    label_map: LabelMap
    preprocess: Preprocess


def load_for_detection(source: str | os.PathLike) -> Loaded:
    """Load a model with its weights, class names and image size.

    Args:
        source: a name of the zoo, whose weights are downloaded once, or the path or URL of a
            checkpoint of this package or of the original DETR.

    Returns:
        The model and what belongs to it; see `label_map_of` for a checkpoint without class names.

    Raises:
        FileNotFoundError: if there is neither such a name nor such a file.
        ValueError: if the file is no checkpoint, does not fit its model, or does not say which
            model it is for.
    """
    source = source if isinstance(source, str) else Path(source)
    checkpoint = load_checkpoint(source)
    if checkpoint.config is None:
        raise ValueError(
            f"{source} holds weights but does not say of which model. Build the model yourself "
            "(build_model, then models.checkpoint.load_weights) and give it to Detector"
        )
    model = build_model(**checkpoint.config)
    load_weights(model, checkpoint.model, strict=True)
    if checkpoint.label_map is not None:
        model.label_map = LabelMap.from_dict(checkpoint.label_map)
    preprocess = Preprocess(**(checkpoint.extra.get("preprocess") or {}))
    return Loaded(model.eval(), label_map_of(model), preprocess)


def label_map_of(model: nn.Module) -> LabelMap:
    """The classes of a model.

    Args:
        model: with `num_classes` and `label_map`.

    Returns:
        Its own label map; without one, COCO's for 91 classes, the layout of the original weights,
        and otherwise the class indices themselves, named "class 0" and so on.

    Raises:
        ValueError: if the label map has another number of classes than the model.
    """
    label_map = getattr(model, "label_map", None)
    if label_map is None:
        if model.num_classes == len(COCO_LABEL_MAP):
            return COCO_LABEL_MAP
        indices = tuple(range(model.num_classes))
        return LabelMap(indices, tuple(f"class {index}" for index in indices))
    if len(label_map) != model.num_classes:
        raise ValueError(
            f"the label map has {len(label_map)} classes and the model {model.num_classes}"
        )
    return label_map

"""From a name or a checkpoint to a model that is ready to detect."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..data.label_map import COCO_LABEL_MAP, COCO_PANOPTIC_LABEL_MAP, LabelMap
from ..data.transforms import MAX_SIZE
from ..models.catalogue import ZOO, ZooEntry, zoo_entry
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
        training_args: the options it was trained with, as far as the checkpoint holds them.
    """

    model: nn.Module
    label_map: LabelMap
    preprocess: Preprocess
    training_args: dict = field(default_factory=dict)

    @property
    def has_class_names(self) -> bool:
        """Whether the names of the classes are known, and not made up from their numbers."""
        known = (COCO_LABEL_MAP, COCO_PANOPTIC_LABEL_MAP)
        return self.model.label_map is not None or any(self.label_map is map for map in known)


def load_for_detection(
    source: str | os.PathLike, name: str | None = None, *, exact_batches: bool = False
) -> Loaded:
    """Load a model with its weights, class names and image size.

    Args:
        source: a name of the zoo, whose weights are downloaded once, or the path or URL of a
            checkpoint of this package or of the original DETR.
        name: the zoo's name of the model, for weights that do not say which model they are of; the
            numbers of classes and queries come from the weights.
        exact_batches: switch on `DETR.exact_batches`; otherwise it is as the checkpoint says.

    Returns:
        The model and what belongs to it; see `label_map_of` for a checkpoint without class names.

    Raises:
        FileNotFoundError: if there is neither such a name nor such a file.
        ValueError: if the file is no checkpoint, does not fit its model, says that it is of another
            model than `name`, or does not say which model it is of.
    """
    checkpoint = load_checkpoint(source if isinstance(source, str) else Path(source))
    config = checkpoint.config
    if config is None:
        if name is None:
            raise ValueError(
                f"{source} holds weights but does not say of which model: name one of the zoo "
                f"({', '.join(ZOO)}), or build the model and give it to Detector"
            )
        config = {"name": name, **_sizes(checkpoint.model)}
    elif name is not None:
        _refuse_contradictions(source, zoo_entry(name), config)
    if exact_batches:
        config = {**config, "exact_batches": True}
    model = build_model(**config)
    load_weights(model, checkpoint.model, strict=True)
    if checkpoint.label_map is not None:
        model.label_map = LabelMap.from_dict(checkpoint.label_map)
    return Loaded(
        model.eval(),
        label_map_of(model),
        Preprocess(**(checkpoint.extra.get("preprocess") or {})),
        dict(checkpoint.extra.get("args") or {}),
    )


def _refuse_contradictions(source, entry: ZooEntry, config: Mapping) -> None:
    """Other sizes are no contradiction: they follow the data set."""
    for option, value in entry.options.items():
        if option not in ("num_classes", "num_queries") and config.get(option, value) != value:
            raise ValueError(
                f"{source} holds weights of a model with {option}={config[option]!r}; "
                f"{entry.name} has {value!r}"
            )


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The options of a model that follow the data set, from the shapes of its weights."""
    sizes = {}
    for head in ("class_embed.weight", "detr.class_embed.weight", "linear_class.weight"):
        if head in state:
            sizes["num_classes"] = len(state[head]) - 1  # without no-object
    for queries in ("query_embed.weight", "detr.query_embed.weight", "query_pos"):
        if queries in state:
            sizes["num_queries"] = len(state[queries])
    return sizes


def label_map_of(model: nn.Module) -> LabelMap:
    """The classes of a model.

    Args:
        model: with `num_classes` and `label_map`.

    Returns:
        Its own label map; without one, COCO's for 91 classes, and its panoptic one for 250, the
        layouts of the original weights, and otherwise the class indices themselves, named "class 0"
        and so on.

    Raises:
        ValueError: if the label map has another number of classes than the model.
    """
    label_map = getattr(model, "label_map", None)
    if label_map is None:
        for known in (COCO_LABEL_MAP, COCO_PANOPTIC_LABEL_MAP):
            if model.num_classes == len(known):
                return known
        indices = tuple(range(model.num_classes))
        return LabelMap(indices, tuple(f"class {index}" for index in indices))
    if len(label_map) != model.num_classes:
        raise ValueError(
            f"the label map has {len(label_map)} classes and the model {model.num_classes}"
        )
    return label_map

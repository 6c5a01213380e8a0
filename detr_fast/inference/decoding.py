"""From the outputs of a model to what was detected in the images that a user named."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.label_map import LabelMap
from .batches import Batch
from .images import read_image, to_pil
from .postprocess import PostProcess, on_host
from .results import Detections


def decode(
    outputs: Mapping[str, Tensor], batch: Batch, label_map: LabelMap, threshold: float
) -> list[tuple[Detections, Tensor]]:
    """What was found in each image, for which the host waits once.

    Args:
        outputs: `pred_logits` and `pred_boxes` of the batch.
        batch: that the model was given.
        label_map: the model's classes.
        threshold: least score of an object.

    Returns:
        For each image its objects, most certain first, and the queries that found them, (n,) int64
        on the CPU.

    Warns:
        UserWarning: predictions that are not finite, which are left out.
    """
    sizes = [tuple(image.shape[1:]) for image in batch.images]
    decoded = on_host(PostProcess()(outputs, torch.tensor(sizes)))
    found = []
    for prediction, source, image in zip(decoded, batch.sources, batch.images, strict=True):
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        queries = _certain(prediction, threshold, path)
        indices = prediction["labels"][queries].tolist()
        ids = [label_map.category_id(index) for index in indices]
        detections = Detections(
            boxes_xyxy=prediction["boxes"][queries].float().numpy(),
            scores=prediction["scores"][queries].float().numpy(),
            class_ids=np.array(ids, dtype=np.int64),
            class_names=tuple(label_map.name(index) for index in indices),
            image_size=tuple(image.shape[1:]),
            path=path,
            open_image=_opener(path, image),
        )
        found.append((detections, queries))
    return found


def _certain(prediction: dict[str, Tensor], threshold: float, path: Path | None) -> Tensor:
    """Queries of finite predictions with at least this score, most certain first."""
    scores, boxes = prediction["scores"], prediction["boxes"]
    finite = scores.isfinite() & boxes.isfinite().all(1)
    if not finite.all():
        warnings.warn(
            f"{int((~finite).sum())} of the {len(finite)} predictions for {path or 'an image'} "
            "are not finite and were left out: look at the weights, or at the 16-bit range",
            stacklevel=5,
        )
    kept = torch.nonzero(finite & (scores >= threshold)).flatten()
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _opener(path: Path | None, image: Tensor) -> Callable[[], Image.Image]:
    # Functions of modules, not closures, so that results can be sent to another process.
    return partial(to_pil, image) if path is None else partial(_open, path)


def _open(path: Path) -> Image.Image:
    return to_pil(read_image(path))

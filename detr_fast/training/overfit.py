"""The first thing to try on new data: can the model learn a handful of images by heart?"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .recipe import Recipe

# Eight generated images reach an AP50 of 0.9 in 50 to 100 steps.
_STEPS = 200


class Subset(Dataset):
    """Some images of a detection data set, with the annotations that belong to them.

    Args:
        dataset: Has `label_map` and `ground_truth()`.
        indices: Which images, in which order.
    """

    def __init__(self, dataset: Dataset, indices: Iterable[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.label_map = dataset.label_map

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        return self.dataset[self.indices[index]]

    def ground_truth(self, masks: bool = False) -> dict[str, Any]:
        """Annotations of these images as a COCO-format dict."""
        # Data sets without masks need not know of them.
        options = {"masks": True} if masks else {}
        return self._of_these_images(self.dataset.ground_truth(**options))

    def panoptic_ground_truth(self) -> dict[str, Any]:
        """Segments of these images as a COCO panoptic dict, where the data set has them."""
        return self._of_these_images(self.dataset.panoptic_ground_truth())

    def read_ids(self, image_id: int) -> np.ndarray:
        """Segment ids (H, W) of one of the images."""
        return self.dataset.read_ids(image_id)

    def _of_these_images(self, truth: dict[str, Any]) -> dict[str, Any]:
        ids = {int(self[index][1]["image_id"]) for index in range(len(self))}
        return {
            **truth,
            "images": [image for image in truth["images"] if image["id"] in ids],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
        }


def images_with_objects(dataset: Dataset, count: int) -> Subset:
    """The first images of a data set that have an object.

    Raises:
        ValueError: There are fewer than `count`, or `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"the number of images to overfit is {count}; expected at least 1")
    found: list[int] = []
    for index in range(len(dataset)):
        if len(dataset[index][1]["labels"]):
            found.append(index)
        if len(found) == count:
            return Subset(dataset, found)
    raise ValueError(
        f"{count} images with objects are to be learned by heart, but the training set has "
        f"{len(found)} among its {len(dataset)} images"
    )


def overfit_recipe(recipe: Recipe, images: int) -> Recipe:
    """The recipe without what keeps a model from learning images by heart."""
    batch_size = min(recipe.batch_size, images)
    epochs = math.ceil(_STEPS / (images // batch_size))
    return recipe.replace(
        augment=False,
        dropout=0.0,
        weight_decay=0.0,
        batch_size=batch_size,
        accumulate=1,
        epochs=epochs,
        lr_drop=epochs,
    )

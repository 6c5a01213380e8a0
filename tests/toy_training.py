"""Data and models so small that a training run takes a second."""

import os
import signal

import numpy as np
import torch
from torch.utils.data import Dataset

from detr_fast import build_model
from detr_fast.data.label_map import LabelMap
from detr_fast.training.recipe import Recipe

LABELS = LabelMap(ids=(3, 7), names=("cat", "dog"))
SIDE = 32


class ToyDataset(Dataset):
    """Noise images of 32x32 with one or two boxes.

    Args:
        length: Number of images.
        empty: Indices of images without objects.
        nan: Indices of images that hold a NaN.
        noise: Add noise from NumPy's global generator, as careless data sets do.
        signal_at: Number of the access at which `signal_number` is sent to this process.
    """

    label_map = LABELS

    def __init__(
        self,
        length,
        empty=(),
        nan=(),
        noise=False,
        dtype=torch.float32,
        signal_at=None,
        signal_number=signal.SIGINT,
    ):
        self.length, self.empty, self.nan, self.noise = length, empty, nan, noise
        self.dtype = dtype
        self.signal_at, self.signal_number = signal_at, signal_number
        self.accesses = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.accesses += 1
        if self.accesses == self.signal_at:
            os.kill(os.getpid(), self.signal_number)
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, SIDE, SIDE, generator=generator, dtype=self.dtype)
        if self.noise:
            noise = np.random.standard_normal(image.shape)  # noqa: NPY002
            image += torch.from_numpy(noise).to(self.dtype)
        if index in self.nan:
            image[0, 0, 0] = float("nan")
        boxes, labels = self._objects(index)
        return image, {
            "boxes": boxes.to(self.dtype),
            "labels": labels,
            "image_id": torch.tensor([100 + index]),
            "area": boxes[:, 2] * boxes[:, 3] * SIDE**2,
            "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
            "orig_size": torch.tensor([SIDE, SIDE]),
            "size": torch.tensor([SIDE, SIDE]),
        }

    def _objects(self, index):
        count = 0 if index in self.empty else 1 + index % 2
        boxes = torch.tensor([[0.4, 0.4, 0.5, 0.5], [0.7, 0.6, 0.3, 0.4]])[:count]
        return boxes, torch.arange(count)

    def ground_truth(self):
        images, annotations = [], []
        for index in range(self.length):
            images.append({"id": 100 + index, "height": SIDE, "width": SIDE})
            boxes, labels = self._objects(index)
            for (cx, cy, w, h), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + index,
                        "category_id": LABELS.category_id(label),
                        "bbox": [(cx - w / 2) * SIDE, (cy - h / 2) * SIDE, w * SIDE, h * SIDE],
                    }
                )
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        return {"images": images, "annotations": annotations, "categories": categories}


def toy_model(seed=0, **options):
    """A DETR of two small layers; BatchNorm unless `backbone_norm` says otherwise."""
    torch.manual_seed(seed)
    model = build_model(
        "detr_tiny",
        **{
            "num_classes": len(LABELS),
            "hidden_dim": 16,
            "nheads": 2,
            "enc_layers": 1,
            "dec_layers": 2,
            "dim_feedforward": 32,
            "num_queries": 5,
            "dropout": 0.0,
            **options,
        },
    )
    model.label_map = LABELS
    return model


def toy_recipe(**changes):
    """Two epochs at a constant learning rate."""
    recipe = Recipe(model="detr_tiny", dropout=0.0, epochs=2, batch_size=2, short_side=None)
    return recipe.replace(**changes)

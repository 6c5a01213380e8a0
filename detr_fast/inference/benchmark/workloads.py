"""What is timed: the images of the zoo's protocol, and batches of one size.

The zoo's inference times are means over the first 100 images of COCO val2017, one at a time
(README of the original repository). Where COCO is not at hand, noise of the sizes of val2017 images
stands for them: how long a DETR takes does not depend on what is to be seen.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data.coco import build_coco, read_coco_json
from ...data.transforms import MAX_SIZE, val_transform
from ..images import ImageSource, read_image
from ..loading import Preprocess
from ..postprocess import PostProcess
from .noise import noise_image

# The commonest size of COCO's images, 800 x 1066 at short side 800.
COMMON_SIZE = (480, 640)
SHORT_SIDE = 800
_SIZES = Path(__file__).with_name("val2017_sizes.json")


@dataclass(frozen=True)
class Workload:
    """Batches that every implementation is given.

    Attributes:
        name: for people.
        batch_size: images of a batch.
        batches: the images of each, as `read_image` takes them; those of a batch of one size.
        rounds: how often each batch is timed.
        staged: whether the stages within the model are timed as well.
    """

    name: str
    batch_size: int
    batches: tuple[tuple[ImageSource, ...], ...]
    rounds: int
    staged: bool

    def __str__(self) -> str:
        return f"{self.name}, batch size {self.batch_size}"


def val2017_sizes() -> list[tuple[int, int]]:
    """(height, width) of 100 images of COCO val2017, as many as possible of the first 100."""
    return [(height, width) for _, height, width in json.loads(_SIZES.read_text())["sizes"]]


def zoo_protocol(images: int, coco_path: str | Path | None = None) -> Workload:
    """The first images of val2017, one at a time.

    Args:
        images: how many, at least 1.
        coco_path: folder in COCO's layout; None for noise of the sizes of val2017 images.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used; see `build_coco`.
        ValueError: there are not so many images.
    """
    if coco_path is None:
        sources = [
            noise_image(*size, seed=seed) for seed, size in enumerate(val2017_sizes()[:images])
        ]
        where = "the table of val2017 sizes"
    else:
        dataset = build_coco(coco_path, "val")
        entries = read_coco_json(dataset.annotation_file)["images"]
        sources = [dataset.image_folder / entry["file_name"] for entry in entries[:images]]
        where = str(dataset.annotation_file)
    if len(sources) < images:
        raise ValueError(f"images is {images}, but {where} has {len(sources)}")
    return Workload("zoo protocol", 1, tuple((source,) for source in sources), 1, False)


def fixed_size(batch_size: int, rounds: int) -> Workload:
    """One batch of noise of COCO's commonest size, time and again."""
    images = tuple(noise_image(*COMMON_SIZE, seed=seed) for seed in range(batch_size))
    return Workload("fixed size", batch_size, (images,), rounds, True)


def preprocess_for(short_side: int) -> Preprocess:
    """DETR's sizes scaled to another short side than 800."""
    return Preprocess(short_side, round(MAX_SIZE * short_side / SHORT_SIDE))


class Pipeline:
    """What happens before the model and after it, the same for every implementation.

    Args:
        preprocess: to what size images are brought.
        device: where the model is.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device):
        self.device = device
        self._transform = val_transform(preprocess.short_side, preprocess.max_size)
        self._postprocess = PostProcess()

    def prepare(self, sources: tuple[ImageSource, ...]) -> tuple[list[Tensor], Tensor]:
        """Images read, resized, normalised and on the device, and their original (B, 2) sizes."""
        images = [read_image(source) for source in sources]
        sizes = torch.tensor([tuple(image.shape[1:]) for image in images])
        return [self._transform(image).to(self.device) for image in images], sizes

    def finish(self, outputs: dict[str, Tensor], sizes: Tensor) -> list[dict[str, Tensor]]:
        """Scores, labels and boxes in pixels, on the CPU."""
        found = self._postprocess(outputs, sizes)
        return [{key: value.cpu() for key, value in image.items()} for image in found]

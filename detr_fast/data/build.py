"""Data sets by name, and the loaders that batch them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset

from .batching import collate
from .buckets import BucketSampler
from .coco import build_coco
from .kinds import KINDS
from .label_map import LabelMap
from .panoptic import build_coco_panoptic
from .sampling import EpochSampler, SeededSamples
from .shapes import ShapesDataset
from .transforms import train_transform, val_transform

SHAPES_LENGTHS = {"train": 1000, "val": 200}


def build_dataset(
    kind: str | None,
    split: str,
    *,
    coco_path: str | Path | None = None,
    augment: bool | None = None,
    transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
    label_map: LabelMap | None = None,
    on_error: str = "fail",
    length: int | None = None,
    seed: int = 0,
    masks: bool = False,
    coco_panoptic_path: str | Path | None = None,
) -> Dataset:
    """A detection or panoptic data set with the transform that goes with it.

    Args:
        kind: "coco", "coco_panoptic", "shapes", "shapes_panoptic", or None: COCO where a
            `coco_path` is given, otherwise shapes. The panoptic ones have stuff, and masks always.
        split: "train" or "val"; for COCO any split that `coco.build_coco` finds.
        coco_path: folder in COCO's layout.
        augment: random flips, sizes and crops; by default for the training split only. Shapes
            keep their native resolution and are only flipped.
        transform: replaces the one that `augment` chooses.
        label_map: of the model that is evaluated or trained on; see `coco.build_coco`.
        on_error: "fail" or "skip" unreadable images; see `coco.CocoDetection`.
        length: number of generated images; by default 1000 for training and 200 for validation.
        seed: of the generated images; validation uses the series after that of training.
        masks: whether targets have masks.
        coco_panoptic_path: see `panoptic.build_coco_panoptic`.

    Raises:
        FileNotFoundError: the COCO files are not there.
        ValueError: an unknown kind or split, arguments of the other kind, or bad annotations.
    """
    if kind is None:
        kind = "shapes" if coco_path is None else "coco"
    if kind not in KINDS:
        raise ValueError(f"data set kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    augment = split == "train" if augment is None else augment
    if coco_panoptic_path is not None and kind != "coco_panoptic":
        raise ValueError(
            f"coco_panoptic_path {coco_panoptic_path} is given, but the data set kind is {kind!r}; "
            "it is for 'coco_panoptic'."
        )
    if kind in ("coco", "coco_panoptic"):
        if coco_path is None:
            raise ValueError(f"data set kind {kind!r} needs coco_path, the folder of the data.")
        if length is not None:
            raise ValueError(f"length={length} is for generated shapes; COCO has its own.")
        transform = transform or (train_transform() if augment else val_transform())
        if kind == "coco":
            return build_coco(coco_path, split, transform, label_map, on_error, masks)
        if on_error != "fail":
            raise ValueError(f"on_error is {on_error!r}; data set kind 'coco_panoptic' has 'fail'.")
        return build_coco_panoptic(coco_path, split, transform, label_map, coco_panoptic_path)
    if coco_path is not None:
        raise ValueError(f"coco_path {coco_path} is given, but data set kind {kind!r} has none.")
    if split not in SHAPES_LENGTHS:
        raise ValueError(f"shapes have the splits train and val; got {split!r}.")
    length = SHAPES_LENGTHS[split] if length is None else length
    transform = transform or (train_transform(scales=None) if augment else val_transform(None))
    stuff = kind == "shapes_panoptic"
    dataset = ShapesDataset(length, seed + (split == "val"), transform, masks=masks, stuff=stuff)
    if label_map is not None and label_map != dataset.label_map:
        raise ValueError(
            f"the label map given has {len(label_map)} classes ({', '.join(label_map.names[:3])}"
            f", ...), {kind} have {len(dataset.label_map)} of their own; give a coco_path."
        )
    return dataset


def build_loader(
    dataset: Dataset,
    batch_size: int,
    shuffle: bool = False,
    num_workers: int = 0,
    distributed: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
    buckets: bool = False,
    max_images: int | None = None,
) -> DataLoader:
    """Batches of `(NestedTensor, list of targets)`.

    Call `loader.sampler.set_epoch(epoch)` before each epoch. What a batch holds, augmentation
    included, depends on `seed` and the epoch only, not on `num_workers`.

    Args:
        dataset: see `build_dataset`.
        batch_size: images of one batch of this process.
        shuffle: for training. Every process gets equally many images, the first ones repeated
            where needed. Otherwise every image occurs exactly once over all processes, whose
            numbers of batches may therefore differ: exchange nothing between them per batch.
        num_workers: processes that load; they persist over epochs. 0 loads in this one.
        distributed: take this process's share, by `torch.distributed`'s rank and world size.
        seed: of the order and of the augmentation.
        drop_last: leave out a last batch that is not full.
        pin_memory: hand out batches in page-locked memory, for a GPU.
        buckets: put images of like sizes, which the data set's `image_size(index)` tells, in one
            batch, for evaluation where results do not depend on the batch; see `BucketSampler`,
            which knows no epochs. A batch of one image needs no bucket.
        max_images: only the first so many images.

    Raises:
        ValueError: the data set is empty, `drop_last` leaves no batch, or `buckets` come with
            `shuffle` or `drop_last`.
    """
    if len(dataset) == 0:
        raise ValueError("the data set is empty: 0 images.")
    length = len(dataset) if max_images is None else min(max_images, len(dataset))
    share = {
        "rank": dist.get_rank() if distributed else 0,
        "world_size": dist.get_world_size() if distributed else 1,
    }
    if buckets and (shuffle or drop_last):
        raise ValueError("buckets have every image in a fixed order: no shuffle, no drop_last.")
    if buckets and batch_size > 1:
        sizes = [dataset.image_size(index) for index in range(length)]
        batching = {"batch_sampler": BucketSampler(sizes, batch_size, seed, **share)}
    else:
        sampler = EpochSampler(length, shuffle, seed, **share, pad=shuffle)
        if drop_last and len(sampler) < batch_size:
            raise ValueError(
                f"the data set has {length} images, {len(sampler)} for each of "
                f"{sampler.world_size} processes: fewer than one batch of {batch_size}. "
                "Lower the batch size."
            )
        batching = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    return DataLoader(
        SeededSamples(dataset),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # Its own: a loader without one draws from, and so moves, the global generator.
        generator=torch.Generator().manual_seed(seed),
        **batching,
    )

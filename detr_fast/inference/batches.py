"""The images that a user names, batch by batch, on the device of a model."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors

from ..data.buckets import size_buckets
from .images import ImageSource, image_size, read_image
from .inputs import Form, InputPath, Inputs
from .prefetch import read_ahead


class Batch(NamedTuple):
    """Images that go through a model together.

    Attributes:
        places: of the images among those that were named.
        sources: what names them.
        images: as `read_image` gives them.
        inputs: as the model takes them.
    """

    places: list[int]
    sources: list[ImageSource]
    images: list[tv_tensors.Image]
    inputs: Inputs


def read_batches(
    sources: list[ImageSource],
    several: bool,
    batch_size: int,
    alike: bool,
    path: InputPath,
    form: Form,
) -> Iterator[Batch]:
    """Reads images, a batch ahead of who asks for them.

    Args:
        sources, several: what `list_sources` gives.
        batch_size: images of a batch, at most.
        alike: whether to make batches of images of like shapes, see `size_buckets`; otherwise they
            are neighbours.
        path: of the model's device.
        form: of the model's batches.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if an image cannot be used, named by its path or its place in the list.
    """

    def named(read: Callable, place: int):
        return _named(read, sources[place], place if several else None)

    def read(place: int) -> tuple[tv_tensors.Image, Tensor]:
        image = named(read_image, place)
        return image, path.prepare(image)

    def gather(pairs: list[tuple[tv_tensors.Image, Tensor]]) -> tuple[list, Any]:
        images, prepared = zip(*pairs, strict=True)
        return list(images), path.gather(prepared)

    every = range(len(sources))
    if alike:
        batches = size_buckets([named(image_size, place) for place in every], batch_size)
    else:
        batches = [list(every[i : i + batch_size]) for i in every[::batch_size]]
    # The threads of torch are as many as the user grants.
    threads = min(len(sources), torch.get_num_threads()) if len(sources) > 1 else 0
    read_ones = read_ahead(read, batches, threads, gather)
    for places, (images, gathered) in zip(batches, read_ones, strict=True):
        chosen = [sources[place] for place in places]
        yield Batch(places, chosen, images, path.place(gathered, form))


def _named(read: Callable, source: ImageSource, place: int | None):
    """What `read` makes of a source; its error says which image of a list it is about."""
    try:
        return read(source)
    except ValueError as error:
        if place is None or isinstance(source, str | os.PathLike):
            raise
        raise ValueError(f"image {place} of the list: {error}") from error

"""Packed targets: the boxes and labels of a batch in one piece.

A batch arrives as one dictionary per image. Matching and losses want all targets in three tensors,
so that no operation loops over images. The number of targets of every image is a tensor shape,
known on the host, which is why nothing downstream ever has to copy from the device to ask for it.

Where shapes must not depend on the number of targets either, as in a CUDA graph, targets are
padded: every image has room for as many, and only the device knows how many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedTargets:
    """The targets of B images as three tensors; T is the number of targets of all images.

    Attributes:
        labels: (T,) int64, index of the class in the label map.
        boxes: (T, 4) floating point, (cx, cy, w, h) as fractions of the image.
        offsets: (B+1,) int64, always on the CPU; image i owns targets `offsets[i]:offsets[i+1]`.
        image_ids: one entry per image, or empty: what names an image in messages.
        counts: None, or (B,) int64 on the device of the labels: the targets are padded. Then every
            image has room for T / B targets, and of image i only the first `counts[i]` are there.
            What else the room holds is finite and means nothing.
        known_sizes: number of targets of each image, if whoever packed them knows.
    """

    labels: Tensor
    boxes: Tensor
    offsets: Tensor
    image_ids: tuple = field(default=(), repr=False)
    counts: Tensor | None = None
    known_sizes: tuple[int, ...] | None = field(default=None, repr=False)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of targets of each image; for padded targets the room of each image."""
        return self.known_sizes or tuple(self.offsets.diff().tolist())

    @property
    def num_images(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def image_index(self) -> Tensor:
        """(T,) int64 on the device of the labels: the image each target belongs to."""
        if self.counts is not None:
            image = torch.arange(self.num_images, device=self.labels.device)
            return image[:, None].expand(-1, self._room()).flatten()
        index = torch.repeat_interleave(torch.arange(self.num_images), self.offsets.diff())
        return index.to(self.labels.device, non_blocking=True)

    def counts_on_device(self) -> Tensor:
        """(B,) int64 on the device of the labels: the number of targets of each image."""
        if self.counts is not None:
            return self.counts
        return self.offsets.diff().to(self.labels.device, non_blocking=True)

    def num_targets(self) -> int | Tensor:
        """Number of targets of all images; of padded targets a tensor of no dimensions."""
        return sum(self.sizes) if self.counts is None else self.counts.sum()

    def num_matched(self, num_queries: int) -> int | Tensor:
        """Number of targets that find a query: min(num_queries, targets) of every image, summed.

        Of padded targets it is a tensor of no dimensions.
        """
        if self.counts is None:
            return sum(min(size, num_queries) for size in self.sizes)
        return self.counts.clamp(max=num_queries).sum()

    def to(self, device: torch.device | str) -> PackedTargets:
        """The same targets on another device; the offsets stay on the CPU."""
        if self.labels.device == torch.device(device):
            return self
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            boxes=self.boxes.to(device, non_blocking=True),
            counts=None if self.counts is None else self.counts.to(device, non_blocking=True),
        )

    def padded(self, capacity: int) -> PackedTargets:
        """The same targets with room for `capacity` of them in every image.

        The shapes of the result depend on the number of images and the capacity alone, and nothing
        that takes it asks the host for the number of targets: what `SetCriterion` does with it can
        be captured in a CUDA graph, and replayed after `copy_` with other targets.

        Raises:
            ValueError: if an image has more targets than that, or they are padded already.
        """
        if self.counts is not None:
            raise ValueError("these targets are padded already; use compact() first")
        largest = max(self.sizes, default=0)
        if largest > capacity:
            image = self.sizes.index(largest)
            raise ValueError(
                f"{self.image_name(image)} has {largest} targets, more than the capacity of "
                f"{capacity}: give a larger one"
            )
        count = self.offsets.diff()
        slot = torch.arange(len(self.labels)) + torch.repeat_interleave(
            torch.arange(self.num_images) * capacity - self.offsets[:-1], count
        )
        slot = slot.to(self.labels.device, non_blocking=True)
        room = self.num_images * capacity
        return PackedTargets(
            self.labels.new_zeros(room).index_copy(0, slot, self.labels),
            self.boxes.new_zeros(room, 4).index_copy(0, slot, self.boxes),
            torch.arange(self.num_images + 1) * capacity,
            self.image_ids,
            self.counts_on_device(),
        )

    def compact(self) -> PackedTargets:
        """The targets without room; waits for the device if they are padded."""
        if self.counts is None:
            return self
        counts = self.counts.cpu()
        present = self.present()
        offsets = torch.cat((self.offsets[:1], counts.cumsum(0)))
        return PackedTargets(self.labels[present], self.boxes[present], offsets, self.image_ids)

    def copy_(self, other: PackedTargets) -> PackedTargets:
        """Overwrites these padded targets with others, in place and without waiting.

        Args:
            other: targets of as many images, padded to the same capacity, on any device.

        Raises:
            ValueError: if the shapes do not agree, or targets are not padded.
        """
        if self.counts is None or other.counts is None or other.boxes.shape != self.boxes.shape:
            raise ValueError(
                "copy_ takes targets padded to the same capacity, of as many images: got "
                f"{tuple(other.boxes.shape)} boxes for {tuple(self.boxes.shape)}"
            )
        for name in ("labels", "boxes", "counts"):
            getattr(self, name).copy_(getattr(other, name), non_blocking=True)
        return self

    def present(self) -> Tensor:
        """(T,) bool on the device of the labels: False in the room of padded targets."""
        if self.counts is None:
            return torch.ones_like(self.labels, dtype=torch.bool)
        place = torch.arange(self._room(), device=self.labels.device)
        return (place < self.counts[:, None]).flatten()

    def repeated(self, times: int, num_queries: int) -> PackedTargets:
        """The same targets several times over, image by image.

        Args:
            times: how often each target is there, at least 1; less often in an image in which that
                would make more targets than queries.
            num_queries: number of queries of an image.
        """
        if self.counts is not None:
            return self._repeated_with_room(times, num_queries)
        sizes = self.offsets.diff()
        repeated = sizes * _fitting(sizes, times, num_queries)
        offsets = torch.cat((self.offsets[:1], repeated.cumsum(0)))
        image = torch.repeat_interleave(torch.arange(self.num_images), offsets.diff())
        place = torch.arange(len(image)) - offsets[image]
        index = self.offsets[image] + place % sizes[image]
        index = index.to(self.labels.device, non_blocking=True)
        return PackedTargets(self.labels[index], self.boxes[index], offsets, self.image_ids)

    def _repeated_with_room(self, times: int, num_queries: int) -> PackedTargets:
        room, device = self._room(), self.labels.device
        place = torch.arange(room * times, device=device) % self.counts.clamp(min=1)[:, None]
        image = torch.arange(self.num_images, device=device)
        index = (image[:, None] * room + place).flatten()
        return PackedTargets(
            self.labels.index_select(0, index),
            self.boxes.index_select(0, index),
            self.offsets * times,
            self.image_ids,
            self.counts * _fitting(self.counts, times, num_queries),
        )

    def _room(self) -> int:
        """Of padded targets: how many there are room for in each image."""
        return len(self.labels) // max(self.num_images, 1)

    def image_name(self, image: int) -> str:
        """Names an image in a message, by its id where the target brought one."""
        identity = self.image_ids[image] if self.image_ids else None
        if identity is None:
            return f"image {image} of the batch"
        return f"image {int(identity)}"


def _fitting(sizes: Tensor, times: int, num_queries: int) -> Tensor:
    """How often the targets of each image can be repeated, up to `times`."""
    return (num_queries // sizes.clamp(min=1)).clamp(1, times)


def pack_targets(targets: Sequence[Mapping[str, Tensor]]) -> PackedTargets:
    """Packs one target dictionary per image; checks keys and shapes, never values.

    Args:
        targets: for each image a mapping with `labels` (n,) of any integer type and `boxes` (n, 4).
            An image without objects may bring empty tensors of any type and of shape (0,). An
            `image_id` is used in messages. All tensors of a batch are on one device.

    Returns:
        The packed targets on the device of the tensors. Boxes keep their floating-point type
        (integers become float32).

    Raises:
        TypeError: if `targets` is not a sequence of mappings, or labels are not integers.
        ValueError: if a key is missing or the shapes of an image do not agree.
    """
    if isinstance(targets, (Mapping, Tensor)) or not isinstance(targets, Sequence):
        raise TypeError(
            "targets must be a list with one dict per image, each with 'labels' (n,) and 'boxes' "
            f"(n, 4); got {type(targets).__name__}"
        )
    labels, boxes, image_ids = [], [], []
    for position, target in enumerate(targets):
        if not isinstance(target, Mapping):
            raise TypeError(
                f"targets[{position}] must be a dict with 'labels' and 'boxes'; "
                f"got {type(target).__name__}"
            )
        image_ids.append(target.get("image_id"))
        _check_shapes(target, position)
        labels.append(target["labels"].to(torch.int64))
        own = target["boxes"].reshape(-1, 4)
        boxes.append(own if own.is_floating_point() else own.float())
    offsets = torch.tensor([0, *(len(own) for own in labels)]).cumsum(0)
    if not targets:
        return PackedTargets(torch.empty(0, dtype=torch.int64), torch.empty(0, 4), offsets)
    return PackedTargets(torch.cat(labels), torch.cat(boxes), offsets, tuple(image_ids))


def _check_shapes(target: Mapping[str, Tensor], position: int) -> None:
    for key in ("labels", "boxes"):
        if key not in target:
            raise ValueError(f"{_name(target, position)} has no '{key}'; it has {sorted(target)}")
        if not isinstance(target[key], Tensor):
            raise TypeError(
                f"'{key}' of {_name(target, position)} must be a tensor; "
                f"got {type(target[key]).__name__}"
            )
    labels, boxes = target["labels"], target["boxes"]
    if labels.dim() != 1:
        raise ValueError(
            f"labels of {_name(target, position)} must have shape (n,); got {tuple(labels.shape)}"
        )
    if len(labels) and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(f"labels of {_name(target, position)} must be integers; got {labels.dtype}")
    empty = boxes.numel() == 0 and boxes.dim() in (1, 2)
    if not empty and (boxes.dim() != 2 or boxes.shape[1] != 4):
        raise ValueError(
            f"boxes of {_name(target, position)} must have shape (n, 4); got {tuple(boxes.shape)}"
        )
    if len(labels) != boxes.numel() // 4:
        raise ValueError(
            f"{_name(target, position)} has {len(labels)} labels but {boxes.numel() // 4} boxes: "
            "each box needs its label"
        )


def _name(target: Mapping[str, Tensor], position: int) -> str:
    # Only for messages: reading an id from an accelerator waits for it.
    identity = target.get("image_id")
    return f"targets[{position}]" + (f" (image {int(identity)})" if identity is not None else "")

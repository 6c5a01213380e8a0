"""From the masks of a model to instance masks and panoptic maps of the original image."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.label_map import LabelMap
from ..data.panoptic_png import write_panoptic_png

# How much enlarged logits of masks may take at once.
_BYTES_AT_ONCE = 256 << 20

Size = tuple[int, int]


@dataclass(frozen=True)
class PanopticMap:
    """Every pixel of an image given to one segment, or to none.

    Attributes:
        ids: int32 (H, W), the segment of each pixel; 0 is void.
        segments_info: COCO's description of each segment, in the order of ids: `id`,
            `category_id`, `isthing` (1 or 0), `area` in pixels, and `score`.
        names: the name of each segment's class.
    """

    ids: np.ndarray
    segments_info: list[dict]
    names: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike) -> Path:
        """Write the ids as a PNG in COCO's colours; `segments_info` belongs in a JSON beside it.

        Raises:
            ValueError: the path does not end in .png.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_panoptic_png(path, self.ids)
        return path


def confident_queries(outputs: Mapping[str, Tensor], threshold: float = 0.85) -> list[Tensor]:
    """Queries that a panoptic map can show, as a `select` of `DETRSegmentation.forward`.

    Args:
        outputs: `pred_logits` (B, Q, C), no-object last.
        threshold: their class, not no-object, has a probability above this.

    Returns:
        For each image (n_i,) int64, ascending.
    """
    return queries_where(is_confident(outputs, threshold))


def is_confident(outputs: Mapping[str, Tensor], threshold: float) -> Tensor:
    """Whether a query is one of `confident_queries`: (B, Q) bool."""
    scores, labels = _classify(outputs["pred_logits"])
    return _is_confident(scores, labels, outputs, threshold)


def queries_where(kept: Tensor) -> list[Tensor]:
    """The queries that are kept, (B, Q) bool, for which the host waits once a batch.

    Returns:
        For each image (n_i,) int64, ascending, on the device of `kept`.
    """
    queries = [own.nonzero().flatten() for own in kept.cpu()]
    joined = torch.cat(queries).to(kept.device, non_blocking=kept.is_cuda)
    return list(joined.split([len(own) for own in queries]))


class PostProcessMasks(nn.Module):
    """Masks of single queries at the original image's size.

    As in the original: logits are enlarged bilinearly to the padded batch, thresholded, cut to the
    image, and brought to the original's size by nearest interpolation.

    Args:
        threshold: probability above which a pixel belongs to the mask.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    @torch.no_grad()
    def forward(
        self,
        masks: Sequence[Tensor],
        canvas: Size,
        sizes: Sequence[Size],
        target_sizes: Sequence[Size],
    ) -> list[Tensor]:
        """Decodes some masks of every image.

        Args:
            masks: for each image logits (n_i, h, w) over the padded batch.
            canvas: height and width of the padded batch in pixels.
            sizes: of each image in it, without padding.
            target_sizes: of each original image.

        Returns:
            For each image (n_i, H_i, W_i) bool, on the device of the masks.
        """
        return [
            torch.cat(
                [
                    _nearest((enlarged.sigmoid() > self.threshold).byte(), target, "nearest").bool()
                    for enlarged in _enlarged(own, canvas, size)
                ]
            )
            if len(own)
            else own.new_zeros((0, *target), dtype=torch.bool)
            for own, size, target in zip(masks, sizes, target_sizes, strict=True)
        ]


class PostProcessPanoptic(nn.Module):
    """Panoptic maps (Carion et al., ECCV 2020, section 4.2); the host waits for them once a batch.

    Of the queries whose class is certain enough each pixel goes to the one with the largest mask
    logit. Segments of one class of stuff are one segment. Segments that end up with `smallest`
    pixels or fewer are removed and their pixels given to the others.

    Args:
        label_map: the model's classes, and which of them are stuff.
        threshold: probability that the class of a query has to exceed.
        smallest: largest area, in pixels of the original image, that is removed.
        merge_stuff: False keeps, of several queries of one class of stuff, only the first, and
            gives the pixels of the others to whoever comes next. That is what the original's code
            does, although it means to merge: merged queries have no area left, and are removed as
            too small before the map is computed again.
    """

    def __init__(
        self,
        label_map: LabelMap,
        threshold: float = 0.85,
        smallest: int = 4,
        merge_stuff: bool = True,
    ):
        super().__init__()
        self.label_map = label_map
        self.threshold = threshold
        self.smallest = smallest
        self.merge_stuff = merge_stuff
        things = (label_map.is_thing(label) for label in range(len(label_map)))
        self._is_stuff = torch.tensor([not thing for thing in things] + [False])

    @torch.no_grad()
    def forward(
        self,
        outputs: Mapping[str, Tensor],
        canvas: Size,
        sizes: Sequence[Size],
        target_sizes: Sequence[Size] | None = None,
    ) -> list[PanopticMap]:
        """Decodes a batch.

        Args:
            outputs: `pred_logits` (B, Q, C), and either `pred_masks` (B, Q, h, w) or
                `selected_masks` and `selected_queries`, which should be at least
                `confident_queries`. Masks are over the padded batch.
            canvas: height and width of the padded batch in pixels.
            sizes: of each image in it, without padding, where the arg-max is taken.
            target_sizes: of each original image, to which the map is brought by nearest
                interpolation; None for `sizes`.

        Returns:
            A map for each image.
        """
        target_sizes = sizes if target_sizes is None else target_sizes
        scores, labels = _classify(outputs["pred_logits"])
        confident = _is_confident(scores, labels, outputs, self.threshold)
        if "pred_masks" in outputs:
            masks, selected = outputs["pred_masks"], [slice(None)] * len(scores)
        else:
            masks, selected = outputs["selected_masks"], outputs["selected_queries"]
        found = []
        for i, (own, queries) in enumerate(zip(masks, selected, strict=True)):
            query = Queries(scores[i][queries], labels[i][queries], confident[i][queries])
            size, target = tuple(sizes[i]), tuple(target_sizes[i])
            found.append(self._segmented(query, own, canvas, size, target))
        return [self._described(segmented) for segmented in _on_host(found)]

    def _segmented(
        self, queries: "Queries", masks: Tensor, canvas: Size, size: Size, target: Size
    ) -> "Segmented":
        """The map of one image, made without looking at what is found.

        Without the small segments the others have what they had, and pixels of those: no further
        one becomes small. So two rounds are enough where stuff is merged, and where it is not,
        three: a query that loses those of its class in the first may be small in the second.
        """
        alive = queries.confident
        places = torch.arange(len(alive), device=alive.device)
        areas = torch.zeros_like(places)
        ids = torch.zeros(target, dtype=torch.int64, device=alive.device)
        if len(alive) == 0:
            return Segmented(queries.scores, queries.labels, areas, ids)
        segments = self._segments(queries, places)
        for _ in range(2 if self.merge_stuff else 3):
            chosen = _places_of(alive)
            if len(chosen) == 0:
                break
            ids = segments[chosen[_winners(masks[chosen], canvas, size, target)]]
            areas = _areas(ids, len(places))
            before, alive = alive, alive & (areas > self.smallest)[segments]
            if not self.merge_stuff:
                alive &= segments == places
            if _may_ask(alive) and torch.equal(alive, before):
                break
        members = (segments == places[:, None]) & alive
        shown = members.any(1) & (areas > 0)
        return Segmented(
            torch.where(members, queries.scores, 0).amax(1),
            queries.labels,
            areas * shown,
            (shown.cumsum(0) * shown)[ids],
        )

    def _segments(self, queries: "Queries", places: Tensor) -> Tensor:
        """The segment of each query: its own place, for stuff the first place of its class."""
        stuff = self._is_stuff.to(places.device, non_blocking=places.is_cuda)
        # No-object, the label after the last, is not confident, whatever it is otherwise.
        may_merge = queries.confident & stuff[queries.labels.clamp(max=len(stuff) - 1)]
        same = (queries.labels[:, None] == queries.labels) & may_merge[:, None] & may_merge
        return torch.where(same, places, places[:, None]).amin(1)

    def _described(self, found: "Segmented") -> PanopticMap:
        """The map and what its ids, from 1 on, are."""
        areas, labels, scores = found.areas.tolist(), found.labels.tolist(), found.scores.tolist()
        shown = [place for place, area in enumerate(areas) if area > 0]
        info = [
            {
                "id": number,
                "category_id": self.label_map.category_id(labels[place]),
                "isthing": int(self.label_map.is_thing(labels[place])),
                "area": areas[place],
                "score": scores[place],
            }
            for number, place in enumerate(shown, start=1)
        ]
        names = tuple(self.label_map.name(labels[place]) for place in shown)
        return PanopticMap(found.ids.numpy().astype(np.int32), info, names)


class Queries(NamedTuple):
    """Queries of one image that have masks.

    Attributes:
        scores: (n,), of the likeliest class, no-object included.
        labels: (n,) int64, that class.
        confident: (n,) bool, whether it is to be in the map.
    """

    scores: Tensor
    labels: Tensor
    confident: Tensor


class Segmented(NamedTuple):
    """A panoptic map before it leaves the device.

    Attributes:
        scores: (n,), of the segment that begins with a query, the largest of its queries.
        labels: (n,) integers, the class of each query.
        areas: (n,) integers, of the segment that begins with a query, in pixels; 0 for none.
        ids: (H, W) integers, the segment of each pixel, from 1 on; 0 is void.
    """

    scores: Tensor
    labels: Tensor
    areas: Tensor
    ids: Tensor


def _on_host(found: list[Segmented]) -> list[Segmented]:
    """The maps of a batch on the CPU, for which the host waits once."""
    if not any(each.ids.is_cuda for each in found):
        return found
    # Scores travel as their bits.
    parts = [
        (scores.view(torch.int32), labels.int(), areas.int(), ids.int().flatten())
        for scores, labels, areas, ids in found
    ]
    sizes = [len(part) for own in parts for part in own]
    arrived = iter(torch.cat([part for own in parts for part in own]).cpu().split(sizes))
    return [
        Segmented(
            next(arrived).clone().view(each.scores.dtype),
            next(arrived),
            next(arrived),
            next(arrived).view(each.ids.shape),
        )
        for each in found
    ]


def _may_ask(x: Tensor) -> bool:
    """Whether to look at what a tensor holds costs nothing: of a GPU the host would have to wait.

    Where it does, work that turns out to be for nothing is the cheaper.
    """
    return not x.is_cuda


def _places_of(alive: Tensor) -> Tensor:
    """Where `alive` (n,) is True, ascending; in place of the others perhaps the first of these.

    As long as the others must not be looked for, a query that comes several times stands for them,
    which wins the pixels that it wins if it comes once.
    """
    if _may_ask(alive):
        return alive.nonzero().flatten()
    places = torch.arange(len(alive), device=alive.device)
    return torch.where(alive, places, alive.byte().argmax())


def _areas(ids: Tensor, count: int) -> Tensor:
    """How many pixels each id below `count` has, (count,) int64."""
    if _may_ask(ids):
        return ids.flatten().bincount(minlength=count)
    # bincount looks for the largest id.
    each = torch.arange(count, device=ids.device)[:, None, None]
    few = max(1, _BYTES_AT_ONCE // ids.numel())
    return torch.cat([(ids == own).sum((1, 2)) for own in each.split(few)])


def _is_confident(
    scores: Tensor, labels: Tensor, outputs: Mapping[str, Tensor], threshold: float
) -> Tensor:
    no_object = outputs["pred_logits"].shape[-1] - 1
    return (labels < no_object) & (scores > threshold)


def _classify(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and index of the likeliest class, no-object included, (B, Q) each."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).softmax(-1).max(-1)


def _enlarged(masks: Tensor, canvas: Size, size: Size):
    """Logits of masks (n, h, w) over the canvas -> at pixels, cut to the image, a few at a time."""
    dtype = torch.promote_types(masks.dtype, torch.float32)
    height, width = (int(side) for side in canvas)
    step = max(1, _BYTES_AT_ONCE // (4 * height * width))
    for few in masks.split(step):
        pixels = F.interpolate(
            few[:, None].to(dtype), size=(height, width), mode="bilinear", align_corners=False
        )
        yield pixels[:, 0, : int(size[0]), : int(size[1])]


def _winners(masks: Tensor, canvas: Size, size: Size, target: Size) -> Tensor:
    """(target) int64: the place of the largest logit at each pixel, the first of equal ones."""
    best, winner, start = None, None, 0
    for pixels in _enlarged(masks, canvas, size):
        value, place = pixels.max(0)
        place = place + start
        start += len(pixels)
        if best is None:
            best, winner = value, place
        else:
            better = value > best
            best, winner = torch.where(better, value, best), torch.where(better, place, winner)
    # As Pillow does it, which the original uses here.
    return _nearest(winner[None].double(), target, "nearest-exact")[0].long()


def _nearest(masks: Tensor, size: Size, mode: str) -> Tensor:
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks[None], size=tuple(int(side) for side in size), mode=mode)[0]

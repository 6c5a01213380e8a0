"""From the masks of a model to instance masks and panoptic maps of the original image."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.label_map import LabelMap
from ..data.panoptic_png import VOID, write_panoptic_png

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
    scores, labels = _classify(outputs["pred_logits"])
    keep = (labels < outputs["pred_logits"].shape[-1] - 1) & (scores > threshold)
    return [own.nonzero().flatten() for own in keep]


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
    """Panoptic maps (Carion et al., ECCV 2020, section 4.2).

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
        return [
            self._one(*prediction, canvas, tuple(size), tuple(target))
            for prediction, size, target in zip(
                self._confident(outputs), sizes, target_sizes, strict=True
            )
        ]

    def _confident(self, outputs) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Scores (n,), labels (n,) and masks (n, h, w) of each image."""
        scores, labels = _classify(outputs["pred_logits"])
        confident = confident_queries(outputs, self.threshold)
        if "pred_masks" in outputs:
            return [
                (s[q], c[q], m[q])
                for s, c, m, q in zip(scores, labels, outputs["pred_masks"], confident, strict=True)
            ]
        chosen = []
        for i, (queries, masks) in enumerate(
            zip(outputs["selected_queries"], outputs["selected_masks"], strict=True)
        ):
            rows = torch.isin(queries, confident[i])
            own = queries[rows]
            chosen.append((scores[i][own], labels[i][own], masks[rows]))
        return chosen

    def _one(
        self, scores: Tensor, labels: Tensor, masks: Tensor, canvas: Size, size: Size, target: Size
    ) -> PanopticMap:
        labels, scores = labels.tolist(), scores.tolist()
        queries = list(range(len(labels)))
        while queries:
            winners = _winners(masks[queries], canvas, size, target)
            segments = self._segments([labels[q] for q in queries])
            ids = torch.tensor(segments, device=winners.device)[winners]
            areas = torch.bincount(ids.flatten(), minlength=len(queries)).tolist()
            stay = [
                areas[segment] > self.smallest and (self.merge_stuff or segment == place)
                for place, segment in enumerate(segments)
            ]
            if all(stay):
                return self._described(
                    ids.cpu().numpy(),
                    [
                        (labels[queries[segment]], areas[segment], max(members))
                        for segment, members in _grouped(segments, [scores[q] for q in queries])
                    ],
                )
            queries = [q for q, stays in zip(queries, stay, strict=True) if stays]
        return PanopticMap(np.full(target, VOID, dtype=np.int32), [])

    def _segments(self, labels: list[int]) -> list[int]:
        """The segment of each query: its own place, for stuff the first place of its class."""
        first: dict[int, int] = {}
        return [
            place if self.label_map.is_thing(label) else first.setdefault(label, place)
            for place, label in enumerate(labels)
        ]

    def _described(self, places: np.ndarray, segments: list[tuple]) -> PanopticMap:
        """The map in ids from 1 on, and what each of them is."""
        _, ids = np.unique(places, return_inverse=True)
        info = [
            {
                "id": number,
                "category_id": self.label_map.category_id(label),
                "isthing": int(self.label_map.is_thing(label)),
                "area": area,
                "score": score,
            }
            for number, (label, area, score) in enumerate(segments, start=1)
        ]
        names = tuple(self.label_map.name(label) for label, _, _ in segments)
        return PanopticMap((ids.reshape(places.shape) + 1).astype(np.int32), info, names)


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


def _grouped(segments: list[int], scores: list[float]) -> list[tuple[int, list[float]]]:
    groups: dict[int, list[float]] = {}
    for segment, score in zip(segments, scores, strict=True):
        groups.setdefault(segment, []).append(score)
    return sorted(groups.items())

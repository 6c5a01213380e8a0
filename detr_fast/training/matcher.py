"""The Hungarian matcher of DETR: which query is responsible for which object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..ops.set_matching import set_matching
from .targets import PackedTargets, overfull_images, validate_targets


class HungarianMatcher(nn.Module):
    """Assigns to every target the query that predicts it, at the smallest total cost of the image.

    The cost of a query q for a target t is

        cost_class * (-p_q[class of t]) + cost_bbox * |b_q - b_t|_1 + cost_giou * (-GIoU(b_q, b_t))

    with softmax probabilities p and L1 on (cx, cy, w, h) (Carion et al., ECCV 2020, section 3.1).
    Costs that are not finite are replaced by a large one: one broken prediction does not stop the
    matching, and does not change that of other images.

    Args:
        cost_class: weight of the class probability.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of the generalised IoU.
        index_device: where `forward` leaves its indices: "cpu" as the original does, or None for
            the device of the predictions, where nothing waits for the device.

    Raises:
        ValueError: if all three weights are zero.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        *,
        index_device: str | torch.device | None = "cpu",
    ):
        super().__init__()
        if cost_class == 0 and cost_bbox == 0 and cost_giou == 0:
            raise ValueError(
                "cost_class, cost_bbox and cost_giou are all 0: every assignment would cost the "
                "same. Give at least one a weight (the paper's are 1, 5 and 2)"
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.index_device = index_device

    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]] | PackedTargets
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches the predictions of one layer.

        Args:
            outputs: `pred_logits` (B, Q, C) with no-object as the last class, and `pred_boxes`
                (B, Q, 4), normalised (cx, cy, w, h). float16, bfloat16, float32 or float64; halves
                are computed in float32.
            targets: one dict per image with `labels` (M,) and `boxes` (M, 4), or packed targets.

        Returns:
            For each image a pair (i, j) of int64 tensors of length min(Q, M): query `i[k]` is
            matched with target `j[k]` of the image; `i` ascends. On `index_device`.

        Raises:
            ValueError: for shapes that do not agree, and targets that `validate_targets` refuses.
        """
        for key in ("pred_logits", "pred_boxes"):
            if key not in outputs:
                raise ValueError(f"outputs have no '{key}'; they have {sorted(outputs)}")
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if logits.dim() != 3:
            raise ValueError(f"pred_logits must have shape (B, Q, C); got {tuple(logits.shape)}")
        packed = validate_targets(
            targets, num_classes=logits.shape[2] - 1, num_images=logits.shape[0]
        )
        matched = self.match_layers(logits[None], boxes[None], packed)[0]
        if self.index_device is not None:
            matched = matched.to(self.index_device)
        return index_lists(matched, packed.offsets, logits.shape[1])

    @torch.no_grad()
    def match_layers(self, logits: Tensor, boxes: Tensor, packed: PackedTargets) -> Tensor:
        """Matches all decoder layers of a batch in one call, without waiting for the device.

        Args:
            logits: (S, B, Q, C), the S layers stacked; no-object is the last class.
            boxes: (S, B, Q, 4), normalised (cx, cy, w, h).
            packed: targets of the B images, moved to the device of the logits if need be.

        Returns:
            (S, T) int64 on the device of the logits: the query of every target within its image;
            -1 for a target left over in an image with more targets than queries.

        Warns:
            UserWarning: counted, if an image has more targets than there are queries.
        """
        num_queries = logits.shape[2]
        overfull = [size for size in packed.sizes if size > num_queries]
        if overfull:
            overfull_images.record(
                len(overfull),
                f"an image has {max(overfull)} targets but the model has {num_queries} queries: "
                f"the {max(overfull) - num_queries} dearest stay unmatched and are not learned",
            )
        packed = packed.to(logits.device)
        target_boxes = packed.boxes
        if boxes.dtype == torch.float64:
            target_boxes = target_boxes.double()
        return set_matching(
            logits.detach(),
            boxes.detach(),
            packed.labels,
            target_boxes,
            packed.offsets,
            class_cost="softmax",
            weight_class=self.cost_class,
            weight_bbox=self.cost_bbox,
            weight_giou=self.cost_giou,
        )

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}"
        )


def index_lists(matched: Tensor, offsets: Tensor, num_queries: int) -> list[tuple[Tensor, Tensor]]:
    """The matches of one layer in the form of SciPy: for each image its queries and targets.

    Args:
        matched: (T,) int64, the query of every target within its image, or -1.
        offsets: (B+1,) int64 on the CPU; image b has the targets `offsets[b]:offsets[b + 1]`.
        num_queries: number of queries of an image.

    Returns:
        For each image a pair (i, j) as from `HungarianMatcher.forward`, on the device of `matched`.
    """
    sizes = offsets.diff()
    image = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(matched.device)
    # One sort for all images: the key orders by image first, then by query; targets left over go
    # behind the queries of their image, where the host-known lengths cut them off.
    rank = torch.where(matched < 0, num_queries, matched)
    order = (image * (num_queries + 1) + rank).argsort()
    queries = matched[order]
    lists = []
    start = 0
    for size in sizes.tolist():
        stop = start + min(size, num_queries)
        lists.append((queries[start:stop], order[start:stop] - start))
        start += size
    return lists

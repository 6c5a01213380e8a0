"""The Hungarian matcher of DETR: which query is responsible for which object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..ops._library import implementation
from ..ops.image_matching import image_matching
from ..ops.matching_cost import CLASS_COSTS
from ..ops.set_matching import set_matching
from ..ops.sorted_matches import sorted_matches
from .counted_warnings import overfull_images
from .target_checks import validate_targets
from .targets import PackedTargets

#: What a cost that is not finite counts as with `non_finite="last"`.
LAST = 1e8


class HungarianMatcher(nn.Module):
    """Assigns to every target the query that predicts it, at the smallest total cost of the image.

    The cost of a query q for a target t is

        cost_class * class(q, t) + cost_bbox * |b_q - b_t|_1 + cost_giou * (-GIoU(b_q, b_t))

    with L1 on (cx, cy, w, h) and the class cost -p_q[class of t] of softmax probabilities p (Carion
    et al., ECCV 2020, section 3.1) or that of the focal families (see `ops.matching_cost`).

    Args:
        cost_class: weight of the class cost.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of the generalised IoU.
        class_cost: "softmax" or "focal".
        no_object: whether the last logit is that of no-object, which no target can have as label;
            None: with softmax it is, with focal every logit is that of a class.
        alpha, gamma, eps: of the focal class cost; `eps` 0 stands for logarithms of sigmoids.
        non_finite: what becomes of costs that are not finite, in the images that have them; others
            are never affected. "last": such pairs are chosen last. "raise": a ValueError, for which
            the host waits for the device. Or a number that stands for such costs; +inf forbids such
            pairs, so that a target can stay without a query.
        index_device: where `forward` leaves its indices: "cpu" as the original does, or None for
            the device of the predictions, where nothing waits for the device.

    Raises:
        ValueError: if all three weights are zero, or an option is unknown.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        *,
        class_cost: str = "softmax",
        no_object: bool | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        eps: float = 1e-8,
        non_finite: str | float = "last",
        index_device: str | torch.device | None = "cpu",
    ):
        super().__init__()
        if cost_class == 0 and cost_bbox == 0 and cost_giou == 0:
            raise ValueError(
                "cost_class, cost_bbox and cost_giou are all 0: every assignment would cost the "
                "same. Give at least one a weight (the paper's are 1, 5 and 2)"
            )
        if class_cost not in CLASS_COSTS:
            raise ValueError(f"class_cost is {class_cost!r}: use one of {', '.join(CLASS_COSTS)}")
        if non_finite not in ("last", "raise") and not isinstance(non_finite, (int, float)):
            raise ValueError(f"non_finite is {non_finite!r}: use 'last', 'raise' or a number")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_cost = class_cost
        self.no_object = class_cost == "softmax" if no_object is None else no_object
        self.alpha, self.gamma, self.eps = alpha, gamma, eps
        self.non_finite = non_finite
        self.index_device = index_device
        # Whether only targets beyond the number of queries stay without one.
        self._complete = isinstance(non_finite, str) or math.isfinite(non_finite)
        self._stand_in = {"last": LAST, "raise": math.nan}.get(non_finite, non_finite)
        self._one_call = math.isfinite(self._stand_in) and index_device in (None, "cpu")
        self._ran_on: str | None = None

    @property
    def implementation(self) -> str | None:
        """What matched last: "CPU kernel (avx512)", "CUDA kernel", "reference"; None if nothing."""
        return self._ran_on and implementation("set_matching", self._ran_on)

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]] | PackedTargets,
        groups: int = 1,
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches the predictions of one layer.

        Args:
            outputs: `pred_logits` (B, Q, C), and `pred_boxes` (B, Q, 4), normalised (cx, cy, w, h).
                float16, bfloat16, float32 or float64; halves are computed in float32.
            targets: one dict per image with `labels` (M,) and `boxes` (M, 4), or packed targets.
            groups: the queries are this many runs of equal length, each matched with all targets
                (Chen et al., Group DETR, ICCV 2023).

        Returns:
            For each image a pair (i, j) of int64 tensors of length groups * min(Q / groups, M):
            query `i[k]` is matched with target `j[k]` of the image; `i` ascends. On `index_device`.

        Raises:
            ValueError: for shapes that do not agree, targets that `validate_targets` refuses, and
                costs that are not finite if `non_finite` is "raise".
        """
        try:
            logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        except KeyError as missing:
            raise ValueError(f"outputs have no {missing}; they have {sorted(outputs)}") from None
        lists = self._match_if_usual(logits, boxes, targets, groups)
        if lists:
            return lists
        if logits.dim() != 3:
            raise ValueError(f"pred_logits must have shape (B, Q, C); got {tuple(logits.shape)}")
        images, num_queries, num_logits = logits.shape
        packed = validate_targets(
            targets,
            num_classes=num_logits - self.no_object,
            num_images=images,
        ).compact()
        matched = self.match_layers(logits[None], boxes[None], packed, groups)
        if self.index_device is not None:
            matched = matched.to(self.index_device)
        return index_lists(matched, packed, num_queries, complete=self._complete)

    def _match_if_usual(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Mapping[str, Tensor]], groups: int
    ) -> list[tuple[Tensor, Tensor]] | None:
        """The answer of `forward` in one call where nothing is unusual on a CPU, else nothing."""
        if not (self._one_call and logits.is_cpu and groups > 0):
            return None
        try:
            labels = [target["labels"] for target in targets]
            target_boxes = [target["boxes"] for target in targets]
            queries, places = image_matching(
                logits.detach(),
                boxes.detach(),
                labels,
                target_boxes,
                logits.shape[-1] - self.no_object,
                self.class_cost,
                self.cost_class,
                self.cost_bbox,
                self.cost_giou,
                self.alpha,
                self.gamma,
                self.eps,
                groups,
                self._stand_in,
            )
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError):
            return None  # whatever it is, the way with messages says it
        self.__dict__["_ran_on"] = "cpu"  # nn.Module's own way costs a microsecond
        return list(zip(queries, places, strict=True))

    def match_layers(
        self, logits: Tensor, boxes: Tensor, packed: PackedTargets, groups: int = 1
    ) -> Tensor:
        """Matches all decoder layers of a batch in one call, without waiting for the device.

        Args:
            logits: (S, B, Q, C), the S layers stacked.
            boxes: (S, B, Q, 4), normalised (cx, cy, w, h).
            packed: targets of the B images, moved to the device of the logits if need be.
            groups: as in `forward`.

        Returns:
            (S * groups, T) int64 on the device of the logits: row `s * groups + g` has for layer s
            the query of every target among those of group g, counted within the image; -1 for a
            target left over in an image with more targets than queries, and in the room of padded
            targets.

        Raises:
            ValueError: if costs are not finite and `non_finite` is "raise".

        Warns:
            UserWarning: counted, if an image has more targets than there are queries in a group.
        """
        _warn_of_overfull_images(packed, logits.shape[2] // max(groups, 1))
        packed = packed.to(logits.device)
        target_boxes = packed.boxes
        if boxes.dtype == torch.float64:
            target_boxes = target_boxes.double()
        self.__dict__["_ran_on"] = logits.device.type
        matched = set_matching(
            logits,
            boxes,
            packed.labels,
            target_boxes,
            packed.offsets,
            counts=packed.counts,
            class_cost=self.class_cost,
            weight_class=self.cost_class,
            weight_bbox=self.cost_bbox,
            weight_giou=self.cost_giou,
            alpha=self.alpha,
            gamma=self.gamma,
            eps=self.eps,
            groups=groups,
            non_finite_cost=self._stand_in,
        )
        if self.non_finite == "raise" and logits.shape[2]:
            _refuse_unmatched_images(matched, packed, groups)
        return matched

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, "
            f"cost_giou={self.cost_giou}, class_cost={self.class_cost!r}"
        )


def _warn_of_overfull_images(packed: PackedTargets, num_queries: int) -> None:
    # Padded targets are counted on the device, which is not asked here.
    if packed.counts is not None or max(packed.sizes, default=0) <= num_queries:
        return
    overfull = [size for size in packed.sizes if size > num_queries]
    overfull_images.record(
        len(overfull),
        f"an image has {max(overfull)} targets but the model has {num_queries} queries: "
        f"the {max(overfull) - num_queries} dearest stay unmatched and are not learned",
    )


def _refuse_unmatched_images(matched: Tensor, packed: PackedTargets, groups: int) -> None:
    """Raises a ValueError about the first image with targets of which none has a query."""
    found = matched.cpu() >= 0
    starts, counts = packed.offsets.tolist(), packed.counts_on_device().tolist()
    for row, of_row in enumerate(found):
        for image, count in enumerate(counts):
            if count and not of_row[starts[image] : starts[image] + count].any():
                group = f", group {row % groups}" if groups > 1 else ""
                raise ValueError(
                    f"predictions of layer {row // groups}{group} for {packed.image_name(image)} "
                    "give costs that are not finite: a logit or box is NaN or infinite. With "
                    "non_finite='last' such queries are matched last instead"
                )


def index_lists(
    matched: Tensor, packed: PackedTargets, num_queries: int, *, complete: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """The matches of one layer in the form of SciPy: for each image its queries and targets.

    Args:
        matched: (groups, T) int64, from `HungarianMatcher.match_layers` for one layer.
        packed: the targets, not padded.
        num_queries: number of queries of an image, in all groups.
        complete: whether only targets beyond the number of queries are without one. If not, the
            host has to ask the device for the lengths.

    Returns:
        For each image a pair (i, j) as from `HungarianMatcher.forward`, on the device of `matched`.
    """
    groups = len(matched)
    room = [groups * size for size in packed.sizes]
    queries, targets = (each.split(room) for each in sorted_matches(matched, packed.offsets))
    if complete:
        in_group = num_queries // groups
        found = [groups * min(size, in_group) for size in packed.sizes]
    else:
        found = [int((of_image >= 0).sum()) for of_image in queries]
    if found == room:
        return list(zip(queries, targets, strict=True))
    return [(i[:length], j[:length]) for i, j, length in zip(queries, targets, found, strict=True)]

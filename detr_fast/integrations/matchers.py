"""Matchers with the signatures and answers of other projects of the DETR family.

Each takes the place of the project's own `HungarianMatcher`: the same constructor, outputs, targets
and index lists, from one fused operation instead of a cost matrix of all images against all targets
and a loop over SciPy. They differ from their originals where these fail: a prediction that is not
finite does not stop the matching (`non_finite` of `HungarianMatcher`, which every class here takes,
says what happens instead), half precision is computed in float32, and targets that no model can
learn from are refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..training.matcher import HungarianMatcher

Indices = list[tuple[Tensor, Tensor]]


class DeformableDetrMatcher(HungarianMatcher):
    """The matcher of Deformable DETR (Zhu et al., ICLR 2021), DAB-DETR, DN-DETR and DINO.

    `forward(outputs, targets)` takes `pred_logits`, `pred_boxes`, and `labels` and `boxes`.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the costs; the paper's are 2, 5 and 2.
        focal_alpha: of the focal class cost, whose gamma is 2 and eps 1e-8.
        non_finite, index_device: as of `HungarianMatcher`.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        focal_alpha: float = 0.25,
        *,
        eps: float = 1e-8,
        non_finite: str | float = "last",
        index_device: str | torch.device | None = "cpu",
    ):
        super().__init__(
            cost_class,
            cost_bbox,
            cost_giou,
            class_cost="focal",
            alpha=focal_alpha,
            eps=eps,
            non_finite=non_finite,
            index_device=index_device,
        )


class GroupDetrMatcher(DeformableDetrMatcher):
    """The matcher of Group DETR (Chen et al., ICCV 2023), LW-DETR and RF-DETR.

    Args:
        cost_class, cost_bbox, cost_giou, focal_alpha: as of `DeformableDetrMatcher`.
        eps: 1e-8 as in Group DETR and LW-DETR, or 0 for RF-DETR's logarithms of sigmoids.
        non_finite, index_device: as of `HungarianMatcher`.
    """

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        group_detr: int = 1,
    ) -> Indices:
        """Matches every target once in each of `group_detr` equal runs of queries.

        Returns:
            For each image a pair (i, j) as from `HungarianMatcher.forward`: the groups one after
            another, queries counted within the image.

        Raises:
            ValueError: as `HungarianMatcher.forward`, and if the queries do not divide into groups.
        """
        return super().forward(outputs, targets, group_detr)


class RTDetrMatcher(HungarianMatcher):
    """The matcher of RT-DETR (Zhao et al., CVPR 2024), and with `as_dict` of its v2 and D-FINE.

    Args:
        weight_dict: the weights `cost_class`, `cost_bbox` and `cost_giou`.
        use_focal_loss: whether the class cost is focal, with `alpha` and `gamma`, or softmax. In
            either case every logit is that of a class.
        as_dict: whether `forward` returns `{"indices": [...]}`.
        non_finite, index_device: as of `HungarianMatcher`.

    Raises:
        ValueError: if `weight_dict` has not these three weights, or all are zero.
    """

    def __init__(
        self,
        weight_dict: Mapping[str, float],
        use_focal_loss: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        *,
        as_dict: bool = False,
        non_finite: str | float = "last",
        index_device: str | torch.device | None = "cpu",
    ):
        names = ("cost_class", "cost_bbox", "cost_giou")
        if not set(names) <= set(weight_dict):
            raise ValueError(f"weight_dict has {sorted(weight_dict)}: use {', '.join(names)}")
        super().__init__(
            *(weight_dict[name] for name in names),
            class_cost="focal" if use_focal_loss else "softmax",
            no_object=False,
            alpha=alpha,
            gamma=gamma,
            non_finite=non_finite,
            index_device=index_device,
        )
        self.use_focal_loss = use_focal_loss
        self.as_dict = as_dict

    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> Indices | dict[str, Indices]:
        """Matches the predictions of one layer, as `HungarianMatcher.forward` does."""
        indices = super().forward(outputs, targets)
        return {"indices": indices} if self.as_dict else indices


class TransformersMatcher(nn.Module):
    """The `HungarianMatcher` of Hugging Face transformers, by its names of outputs and targets.

    To put this package under the losses of transformers without touching them, see
    `detr_fast.integrations.transformers`.

    Args:
        class_cost, bbox_cost, giou_cost: weights of the costs.
        options: `HungarianMatcher`'s own; its `class_cost` is `kind` here, "softmax" or "focal".
    """

    def __init__(
        self,
        class_cost: float = 1,
        bbox_cost: float = 1,
        giou_cost: float = 1,
        *,
        kind: str = "softmax",
        **options: Any,
    ):
        super().__init__()
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self._matcher = HungarianMatcher(
            class_cost, bbox_cost, giou_cost, class_cost=kind, **options
        )

    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> Indices:
        """Matches the predictions of one layer.

        Args:
            outputs: `logits` (B, Q, C) and `pred_boxes` (B, Q, 4).
            targets: for each image `class_labels` (M,) and `boxes` (M, 4).

        Returns:
            For each image a pair (i, j) as from `HungarianMatcher.forward`.
        """
        renamed = [{_RENAMED.get(key, key): value for key, value in t.items()} for t in targets]
        own = {"pred_logits": outputs["logits"], "pred_boxes": outputs["pred_boxes"]}
        return self._matcher(own, renamed)


_RENAMED = {"class_labels": "labels"}

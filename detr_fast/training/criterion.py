"""The set prediction loss of DETR, for all decoder layers in one pass.

Nothing here waits for the device: no value is read back, no shape depends on values, and no loop
runs over layers or images.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.segmentation import DETRSegmentation
from .loss_normalizer import LossNormalizer, count_normalizer
from .mask_losses import mask_losses, pack_masks
from .matcher import HungarianMatcher
from .recipe import MASK_RESOLUTIONS, Recipe
from .set_losses import Matches, box_losses, cardinality_errors, label_losses
from .target_checks import validate_targets
from .targets import PackedTargets, pack_targets

# What each entry of `losses` computes. Class error and masks are of the last layer only, as in the
# original.
_TERMS = {
    "labels": ("loss_ce", "class_error"),
    "cardinality": ("cardinality_error",),
    "boxes": ("loss_bbox", "loss_giou"),
    "masks": ("loss_mask", "loss_dice"),
}


class SetCriterion(nn.Module):
    """Losses of DETR: classification with no-object, L1 and generalised IoU of the matched boxes.

    Every decoder layer is matched and has its losses (Carion et al., ECCV 2020, sections 3.1 and
    A.2). Losses are computed in float32 whatever the type of the predictions (float64 for float64).

    With more than one process, boxes and class weights are counted over all of them, so that the
    averaged gradients are those of the joined batch. The original counts only the boxes so, and
    averages the classification loss of each process by its own class weights; in one process the
    two agree.

    The terms are those of the `ImageLoss` of transformers, which has no class error. With several
    processes it normalises as the original does, where it was launched with accelerate. With no
    object in the whole batch the original's class error is 100; here there is none (NaN).

    Args:
        num_classes: number of classes without no-object.
        matcher: has `match_layers` (see `HungarianMatcher`).
        weight_dict: weight of every loss in `total`, by name: `loss_ce`, `loss_bbox`, `loss_giou`,
            `loss_mask`, `loss_dice`, and the same with `_0`, `_1`... for the auxiliary layers (see
            `auxiliary_weights`).
        eos_coef: class weight of no-object in the classification loss; the other classes have 1.
        losses: which to compute, of "labels", "boxes", "cardinality", "masks".
        aux_repeats: how many queries of an auxiliary layer learn each target, as far as there are
            enough queries. With more than 1 only the last layer learns to give one answer an
            object, and the others learn from more examples: the hybrid layer scheme of Jia et al.,
            CVPR 2023, section 3. Their losses are normalised by the repeated targets.
        mask_resolution: where masks are compared, "prediction" or "image"; see `mask_losses`.

    Raises:
        ValueError: for an unknown name in `losses`, `weight_dict` or `mask_resolution`, or
            `aux_repeats` below 1.
        TypeError: if the matcher cannot match all layers at once.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        losses: Sequence[str],
        aux_repeats: int = 1,
        mask_resolution: str = "prediction",
    ):
        super().__init__()
        if aux_repeats < 1:
            raise ValueError(f"aux_repeats is {aux_repeats}; expected at least 1")
        if mask_resolution not in MASK_RESOLUTIONS:
            raise ValueError(_unknown("mask_resolution", mask_resolution, MASK_RESOLUTIONS))
        for loss in losses:
            if loss not in _TERMS:
                raise ValueError(_unknown("loss", loss, _TERMS))
        terms = [term for names in _TERMS.values() for term in names]
        for name in weight_dict:
            base, _, layer = name.rpartition("_")
            if name not in terms and not (base in terms and layer.isdigit()):
                raise ValueError(_unknown("name in weight_dict", name, terms))
        if not hasattr(matcher, "match_layers"):
            raise TypeError(
                f"{type(matcher).__name__} has no method match_layers(logits, boxes, packed): "
                "derive the matcher from detr_fast.HungarianMatcher"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.losses = list(losses)
        self.aux_repeats = aux_repeats
        self.mask_resolution = mask_resolution
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]] | PackedTargets,
        normalizer: LossNormalizer | None = None,
    ) -> dict[str, Tensor]:
        """Computes the losses of all layers.

        With padded targets on the device of the predictions (`PackedTargets.padded`) no shape
        depends on the number of targets, and nothing is copied between host and device, so that
        matching, losses and their gradients can be captured in one CUDA graph.

        Args:
            outputs: `pred_logits` (B, Q, num_classes + 1), `pred_boxes` (B, Q, 4) normalised
                (cx, cy, w, h), and optionally `aux_outputs`: a list of the same for the earlier
                decoder layers. For "masks" also `pred_masks` (B, Q, h, w), or `selected_masks` of
                the queries that `matched_queries` gives.
            targets: one dict per image with `labels` (M,) and `boxes` (M, 4), or packed targets.
                Checked by `validate_targets`, padded ones before they were padded. For "masks"
                dicts, with `masks` (M, H, W).
            normalizer: what the sums are divided by; None counts this batch over all processes,
                which every process then has to do at once. For gradient accumulation, give every
                micro-batch the `normalizer` of the whole batch, and add up the gradients.

        Returns:
            Scalars by name, on the device of the predictions: `loss_ce`, `class_error` (percent of
            the matched targets whose class is not the likeliest; NaN if nothing is matched in
            the whole batch), `cardinality_error`, `loss_bbox`, `loss_giou`; then the losses and the
            cardinality error of each auxiliary layer, with `_0`, `_1`... appended. If one rank or
            micro-batch is empty, its losses are zero where they count boxes, and every
            output of the model still has a gradient.

        Raises:
            ValueError: for predictions of the wrong shape, and targets that cannot be learned.
        """
        logits, boxes = _stack_layers(outputs, self.num_classes)
        packed = validate_targets(
            targets, num_classes=self.num_classes, num_images=logits.shape[1]
        ).to(logits.device)
        if normalizer is None:
            normalizer = self.normalizer(packed, logits.shape[2])
        matches = self._match(logits, boxes, packed, last_only=self.aux_repeats > 1)
        masks = {}
        if "masks" in self.losses:
            masks = self._masks(outputs, targets, matches, normalizer)
        if self.aux_repeats == 1 or len(logits) == 1:
            return _by_layer(self._compute(logits, boxes, packed, matches, normalizer)) | masks
        repeated = packed.repeated(self.aux_repeats, logits.shape[2])
        earlier = self._compute(
            logits[:-1],
            boxes[:-1],
            repeated,
            self._match(logits[:-1], boxes[:-1], repeated),
            normalizer.auxiliary,
        )
        last = self._compute(logits[-1:], boxes[-1:], packed, matches, normalizer)
        computed = {
            name: torch.cat((earlier[name], value)) if value.dim() else value
            for name, value in last.items()
        }
        return _by_layer(computed) | masks

    @torch.no_grad()
    def matched_queries(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]] | PackedTargets,
    ) -> list[Tensor]:
        """Queries of the last layer that learn a mask, in the order of the targets.

        With the targets filled in by `functools.partial` this is a `select` of
        `DETRSegmentation.forward`: what is not matched needs no mask in training.

        Args:
            outputs: as in `forward`; masks are not needed.
            targets: as in `forward`.

        Returns:
            For each image (M_i,) int64; query 0 for a target that found none.

        Raises:
            ValueError: see `forward`.
        """
        last = {name: outputs[name] for name in ("pred_logits", "pred_boxes") if name in outputs}
        logits, boxes = _stack_layers(last, self.num_classes)
        packed = validate_targets(
            targets, num_classes=self.num_classes, num_images=logits.shape[1]
        ).to(logits.device)
        queries = self.matcher.match_layers(logits, boxes, packed)[-1].clamp(min=0)
        return list(queries.split(packed.sizes))

    def _match(
        self, logits: Tensor, boxes: Tensor, packed: PackedTargets, last_only: bool = False
    ) -> Matches:
        if last_only:
            logits, boxes = logits[-1:], boxes[-1:]
        queries = self.matcher.match_layers(logits, boxes, packed)
        return Matches.of(queries, packed, boxes.shape[2])

    def _masks(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        matches: Matches,
        normalizer: LossNormalizer,
    ) -> dict[str, Tensor]:
        masks = pack_masks(targets)
        if "selected_masks" in outputs:
            logits = torch.cat(list(outputs["selected_masks"]))
            if len(logits) != len(masks):
                raise ValueError(
                    f"there are {len(logits)} selected_masks for {len(masks)} targets; call the "
                    "model with select=functools.partial(criterion.matched_queries, "
                    "targets=targets)"
                )
        elif "pred_masks" in outputs:
            logits = outputs["pred_masks"].flatten(0, 1).index_select(0, matches.query[-1])
        else:
            raise ValueError(
                f"outputs have no masks, they have {sorted(outputs)}; 'masks' in losses is for a "
                "DETRSegmentation"
            )
        return mask_losses(
            logits,
            masks.to(logits.device, non_blocking=True),
            matches.found[-1],
            normalizer.boxes,
            self.mask_resolution,
        )

    def _compute(
        self,
        logits: Tensor,
        boxes: Tensor,
        packed: PackedTargets,
        matches: Matches,
        normalizer: LossNormalizer,
    ) -> dict[str, Tensor]:
        """Losses of some layers: (S,) by name, and the class error of the last of them, ()."""
        computed: dict[str, Tensor] = {}
        for loss in self.losses:
            if loss == "labels":
                computed |= label_losses(logits, packed, matches, normalizer, self.empty_weight)
            elif loss == "boxes":
                computed |= box_losses(boxes, packed, matches, normalizer)
            elif loss == "cardinality":
                computed |= cardinality_errors(logits, packed, normalizer)
        return computed

    def normalizer(
        self,
        targets: Sequence[Mapping[str, Tensor]] | PackedTargets,
        num_queries: int,
        *,
        over_processes: bool = True,
        device: torch.device | str | None = None,
    ) -> LossNormalizer:
        """Counts what the losses of a step are divided by; needs the targets' shapes only.

        Args:
            targets: of all images of this process in the step; with gradient accumulation, those
                of all its micro-batches in one list.
            num_queries: Q of the model.
            over_processes: whether to count over all processes, with one collective.
            device: where the group's backend reduces; None for that of the targets.

        Returns:
            The normalizer for `forward`.
        """
        packed = targets if isinstance(targets, PackedTargets) else pack_targets(targets)
        return count_normalizer(
            packed,
            num_queries,
            self.eos_coef,
            self.aux_repeats,
            over_processes=over_processes,
            device=device,
        )

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, weighted by `weight_dict`: what to call `backward` on.

        Raises:
            ValueError: if no loss has a weight.
        """
        weighted = [
            value * self.weight_dict[k] for k, value in losses.items() if k in self.weight_dict
        ]
        if not weighted:
            raise ValueError(
                f"none of the losses {sorted(losses)} has a weight; weight_dict has "
                f"{sorted(self.weight_dict)}"
            )
        return torch.stack(weighted).sum()


def auxiliary_weights(weight_dict: Mapping[str, float], num_layers: int) -> dict[str, float]:
    """Weights of all decoder layers from those of the last one.

    Args:
        weight_dict: weights of the last layer's losses, by name.
        num_layers: number of decoder layers of the model.

    Returns:
        `weight_dict` and, for each earlier layer i, the same weights under the names with `_i`.
    """
    weights = dict(weight_dict)
    for layer in range(num_layers - 1):
        weights |= {f"{name}_{layer}": weight for name, weight in weight_dict.items()}
    return weights


def build_criterion(model: nn.Module, recipe: Recipe) -> SetCriterion:
    """DETR's criterion for a model, with the costs and weights of a recipe."""
    layers = len(model.transformer.decoder.layers) if getattr(model, "aux_loss", False) else 1
    weights = auxiliary_weights(recipe.loss_weights(), layers)
    losses = ["labels", "boxes", "cardinality"]
    if isinstance(model, DETRSegmentation):
        weights |= recipe.mask_loss_weights()
        losses.append("masks")
    return SetCriterion(
        model.num_classes,
        HungarianMatcher(recipe.set_cost_class, recipe.set_cost_bbox, recipe.set_cost_giou),
        weights,
        recipe.eos_coef,
        losses,
        recipe.aux_repeats,
        recipe.mask_resolution,
    )


def _stack_layers(outputs: Mapping[str, Any], num_classes: int) -> tuple[Tensor, Tensor]:
    """Logits (S, B, Q, C) and boxes (S, B, Q, 4) of all layers, the last one last."""
    layers = [*outputs.get("aux_outputs", ()), outputs]
    for key in ("pred_logits", "pred_boxes"):
        if any(key not in layer for layer in layers):
            raise ValueError(
                f"outputs or aux_outputs have no '{key}'; outputs have {sorted(outputs)}"
            )
    logits = torch.stack([layer["pred_logits"] for layer in layers])
    boxes = torch.stack([layer["pred_boxes"] for layer in layers])
    if logits.dim() != 4 or logits.shape[-1] != num_classes + 1:
        raise ValueError(
            f"pred_logits must have shape (B, Q, {num_classes + 1}), {num_classes} classes and "
            f"no-object; got {tuple(logits.shape[1:])}"
        )
    if boxes.shape != (*logits.shape[:3], 4):
        raise ValueError(
            f"pred_boxes must have shape {(*logits.shape[1:3], 4)}; got {tuple(boxes.shape[1:])}"
        )
    return _at_least_float32(logits), _at_least_float32(boxes)


def _at_least_float32(predictions: Tensor) -> Tensor:
    return predictions if predictions.dtype == torch.float64 else predictions.float()


def _by_layer(computed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's names: those of the last layer bare, those of the others numbered."""
    losses = {}
    numbered = {}
    for name, values in computed.items():
        if values.dim() == 0:
            losses[name] = values
            continue
        *earlier, losses[name] = values.unbind()
        numbered |= {f"{name}_{layer}": value for layer, value in enumerate(earlier)}
    return losses | numbered


def _unknown(kind: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}"

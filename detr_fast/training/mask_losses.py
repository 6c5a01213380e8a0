"""Losses of masks: sigmoid focal and dice, of the matched masks alone.

Milletari et al., 3DV 2016, and Lin et al., ICCV 2017, as used in Carion et al., ECCV 2020, section
4.2. Memory follows the number of targets, never that of queries.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_losses(
    logits: Tensor,
    targets: Tensor,
    found: Tensor,
    num_boxes: float | Tensor,
    resolution: str = "prediction",
) -> dict[str, Tensor]:
    """Both losses of a batch's matched masks.

    Args:
        logits: (T, h, w), of the query of every target, over the padded batch.
        targets: (T, H, W) bool, over the padded batch; see `pack_masks`.
        found: (T,) bool, whether the target has a query; without one it weighs nothing.
        num_boxes: what the sums are divided by.
        resolution: where they are compared. "prediction" averages the targets over the cells of
            (h, w); "image" enlarges the logits to (H, W), as the original does, for about 16 times
            the memory.

    Returns:
        Scalars `loss_mask` (focal, averaged over pixels) and `loss_dice`; zero, with a gradient,
        without targets.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if len(logits) == 0:
        nothing = logits.sum()
        return {"loss_mask": nothing, "loss_dice": nothing}
    targets = targets.to(logits.dtype)
    # Sizes that agree need no interpolation, which would copy.
    if logits.shape[-2:] != targets.shape[-2:]:
        if resolution == "prediction":
            targets = F.interpolate(targets[:, None], size=logits.shape[-2:], mode="area")[:, 0]
        else:
            logits = F.interpolate(
                logits[:, None], size=targets.shape[-2:], mode="bilinear", align_corners=False
            )[:, 0]
    logits, targets = logits.flatten(1), targets.flatten(1)
    return {
        name: torch.where(found, loss(logits, targets), 0).sum() / num_boxes
        for name, loss in (("loss_mask", sigmoid_focal_loss), ("loss_dice", dice_loss))
    }


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of every mask, averaged over its pixels (Lin et al., ICCV 2017).

    Args:
        logits: (T, P).
        targets: (T, P) in [0, 1].
        alpha: weight of foreground; background has 1 - alpha.
        gamma: how much less pixels count that are right already.

    Returns:
        (T,).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + targets - 2 * probability * targets
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return (weight * wrong**gamma * entropy).mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the smoothed Dice coefficient of every mask (Milletari et al., 3DV 2016).

    Args:
        logits: (T, P).
        targets: (T, P) in [0, 1].

    Returns:
        (T,).
    """
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def pack_masks(targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The masks of all images of a batch in one tensor, in the order of `pack_targets`.

    Args:
        targets: for each image `masks` (n, H_i, W_i) and `labels` (n,).

    Returns:
        (T, H, W) bool on the device of the masks, padded with False at the bottom and on the right
        to the largest image.

    Raises:
        TypeError: `targets` are packed already, which leaves masks out.
        ValueError: an image has no masks, or not one for each label.
    """
    if not isinstance(targets, Sequence):
        raise TypeError(
            f"losses of masks need a list with one dict per image, each with 'masks'; got "
            f"{type(targets).__name__}"
        )
    for position, target in enumerate(targets):
        if "masks" not in target:
            raise ValueError(
                f"targets[{position}] has no 'masks' (n, H, W); it has {sorted(target)}. Build the "
                "data set with masks=True"
            )
        masks, labels = target["masks"], target["labels"]
        if masks.dim() != 3 or len(masks) != len(labels):
            raise ValueError(
                f"masks of targets[{position}] have shape {tuple(masks.shape)}; expected "
                f"({len(labels)}, H, W), one for each label"
            )
    height = max((target["masks"].shape[1] for target in targets), default=0)
    width = max((target["masks"].shape[2] for target in targets), default=0)
    padded = [
        F.pad(masks.bool(), (0, width - masks.shape[2], 0, height - masks.shape[1]))
        for masks in (target["masks"] for target in targets)
    ]
    return torch.cat(padded) if padded else torch.zeros(0, 0, 0, dtype=torch.bool)

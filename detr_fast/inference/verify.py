"""Whether an engine gives what its model gives, on the caller's own images."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from .postprocess import PostProcess

# What an engine may differ by. float32: rounding alone. In 16 bits single numbers say little, and
# what counts is whether the same objects come out.
LIMITS = {"fp32": {"logits": 1e-4, "boxes": 1e-5}, "bf16": {}, "fp16": {}}
LEAST_IDENTICAL = 0.99
# Two detections are the same object at this overlap, with the same class.
_SAME_OBJECT = 0.9
# A score this near the threshold may fall on either side of it without meaning anything.
_SCORE_MARGIN = 0.02


@dataclass(frozen=True)
class Parity:
    """The largest differences between an engine and its model.

    Attributes:
        images: how many were compared.
        logits: largest difference of a logit.
        boxes: largest difference of a normalised box coordinate.
        scores: largest difference of a detected object's score.
        identical: images in which both found the same objects.
        threshold: least score of an object.
    """

    images: int = 0
    logits: float = 0.0
    boxes: float = 0.0
    scores: float = 0.0
    identical: int = 0
    threshold: float = 0.7

    def with_batch(self, expected: dict[str, Tensor], actual: dict[str, Tensor]) -> "Parity":
        """These figures with those of one more batch: the model's outputs and the engine's."""
        expected = {key: value.float() for key, value in _last_layer(expected).items()}
        objects = [
            _differences(one, other, self.threshold)
            for one, other in zip(_decoded(expected), _decoded(actual), strict=True)
        ]
        return replace(
            self,
            images=self.images + len(objects),
            logits=_larger(self.logits, expected["pred_logits"] - actual["pred_logits"]),
            boxes=_larger(self.boxes, expected["pred_boxes"] - actual["pred_boxes"]),
            scores=max(self.scores, *(difference for difference, _ in objects)),
            identical=self.identical + sum(same for _, same in objects),
        )

    def faults(self, precision: str) -> list[str]:
        """What is beyond the limits of a precision, a sentence each; empty if it holds."""
        found = [
            f"{name} differ by {getattr(self, name):.1e}, more than {limit:.0e}"
            for name, limit in LIMITS[precision].items()
            if not getattr(self, name) <= limit
        ]
        if self.identical < LEAST_IDENTICAL * self.images:
            found.append(
                f"the objects agree in {self.identical} of {self.images} images, fewer than "
                f"{LEAST_IDENTICAL:.0%}"
            )
        return found

    def __str__(self) -> str:
        return (
            f"{self.images} images: logits differ by at most {self.logits:.1e}, boxes by "
            f"{self.boxes:.1e}, scores of objects by {self.scores:.1e}; the same objects (score at "
            f"least {self.threshold}) in {self.identical} images"
        )


@torch.inference_mode()
def compare(
    model: nn.Module, engine: nn.Module, batches: Iterable[list[Tensor]], threshold: float = 0.7
) -> Parity:
    """Runs both on the same images.

    Two sets of objects are the same if each object of one with a score clearly above the threshold
    has a partner in the other: the same class, an IoU of at least 0.9 and a score that is not
    clearly below the threshold.

    Args:
        model: the reference, in evaluation mode.
        engine: made of it.
        batches: lists of normalised CHW images, on the device of both.
        threshold: least score of an object.

    Returns:
        The largest differences over all images; a NaN anywhere is NaN.
    """
    parity = Parity(threshold=threshold)
    for batch in batches:
        parity = parity.with_batch(model(batch), engine(batch))
    return parity


def _last_layer(outputs: dict) -> dict[str, Tensor]:
    return {key: outputs[key] for key in ("pred_logits", "pred_boxes")}


def _larger(so_far: float, difference: Tensor) -> float:
    return torch.maximum(difference.abs().max().cpu(), torch.tensor(so_far)).item()


def _decoded(outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    # The size does not matter to an overlap; in a unit square, boxes stay as they are.
    sizes = torch.ones(len(outputs["pred_logits"]), 2, dtype=torch.int64)
    return PostProcess()(outputs, sizes)


def _differences(one: dict, other: dict, threshold: float) -> tuple[float, bool]:
    """The largest difference of an object's score, and whether the objects are the same."""
    same = (one["labels"][:, None] == other["labels"]) & (
        box_iou(one["boxes"], other["boxes"]) >= _SAME_OBJECT
    )
    found_in_other = _all_found(one["scores"], other["scores"], same, threshold)
    found_in_one = _all_found(other["scores"], one["scores"], same.T, threshold)
    certain = (one["scores"] >= threshold) | (other["scores"] >= threshold)
    change = (one["scores"] - other["scores"]).abs()[certain]
    largest = change.max().item() if len(change) else 0.0
    return largest, found_in_other and found_in_one


def _all_found(scores: Tensor, partners: Tensor, same: Tensor, threshold: float) -> bool:
    wanted = scores >= threshold + _SCORE_MARGIN
    possible = same & (partners >= threshold - _SCORE_MARGIN)
    return bool(possible.any(1)[wanted].all())

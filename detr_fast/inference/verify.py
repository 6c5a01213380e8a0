"""Whether an engine gives what its model gives, on the caller's own images.

In float32 the two differ by the order of sums, and the largest difference is what counts. In 16
bits largest differences say little: they come from the few predictions that were undecided to begin
with. There the root mean square of the differences has a limit, relative to that of the predictions
themselves, which follows from how 16 bits round.

Rounding to p significant bits is off by at most 2^-p of a number and by 0.4 * 2^-p in the root mean
square: 1 / sqrt(3) for errors that are spread evenly, and 1 / sqrt(2) for numbers that are spread
evenly between two powers of two. The errors of n roundings one after another add up like a random
walk, to sqrt(n) times that (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019). Rounded are weights
and results: twice in a convolution, 15 times in an encoder layer, 25 times in a decoder layer. The
deepest DETR has 100 convolutions and six layers of each kind, n = 440, so that predictions are off
by 0.4 * 21 * 2^-p, or 8 * 2^-p. Sums and norms leave a relative error much as it is, and a sigmoid
shrinks it; where a network magnifies it, 16 bits are not to be trusted with that network. A 3x3
convolution in bf16 on a CPU may be off by twice as much, see `ops.winograd`. That leaves room: of
random models of up to 101 convolutions the error of ResNet-50's logits grew most, from 0.0066 to
0.0075 where the limit is 0.031.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from .float32 import full_float32
from .postprocess import PostProcess

_BF16, _FP16 = 8 * 2**-8, 8 * 2**-11  # p is 8 and 11
# What the figures of a `Parity` must not exceed.
LIMITS = {
    "fp32": {"logits": 1e-4, "boxes": 1e-5},
    "bf16": {"logits_error": _BF16, "boxes_error": _BF16},
    "fp16": {"logits_error": _FP16, "boxes_error": _FP16},
}
_WORDS = {
    "logits": "logits differ by",
    "boxes": "boxes differ by",
    "logits_error": "the relative error of logits is",
    "boxes_error": "the relative error of boxes is",
}
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
        logits_error: root mean square of the differences of logits, relative to that of the
            model's logits.
        boxes_error: the same of normalised box coordinates.
    """

    images: int = 0
    logits: float = 0.0
    boxes: float = 0.0
    scores: float = 0.0
    identical: int = 0
    threshold: float = 0.7
    logits_error: float = 0.0
    boxes_error: float = 0.0

    def faults(self, precision: str) -> list[str]:
        """What is beyond the limits of a precision, a sentence each; empty if it holds."""
        found = [
            f"{_WORDS[name]} {getattr(self, name):.1e}, more than {limit:.0e}"
            for name, limit in LIMITS[precision].items()
            if not getattr(self, name) <= limit
        ]
        if self.identical < LEAST_IDENTICAL * self.images:
            found.append(
                f"the objects agree in {self.identical} of {self.images} images, fewer than "
                f"{LEAST_IDENTICAL:.0%}"
            )
        return found

    def require(self, precision: str) -> None:
        """Raises a ValueError with the numbers where a precision does not hold."""
        faults = self.faults(precision)
        if faults:
            raise ValueError(f"{precision} does not hold: {'; '.join(faults)} ({self})")

    def __str__(self) -> str:
        return (
            f"{self.images} images: logits differ by at most {self.logits:.1e} (relative error "
            f"{self.logits_error:.1e}), boxes by {self.boxes:.1e} ({self.boxes_error:.1e}), scores "
            f"of objects by {self.scores:.1e}; the same objects (score at least {self.threshold}) "
            f"in {self.identical} images"
        )


@torch.inference_mode()
def compare(
    model: nn.Module, engine: nn.Module, batches: Iterable[list[Tensor]], threshold: float = 0.7
) -> Parity:
    """Runs both on the same images.

    Two sets of objects are the same if each object of one with a score clearly above the threshold
    has a partner in the other: the same class, an IoU of at least 0.9 and a score that is not
    clearly below the threshold.

    On CUDA the reference is computed in full float32, whatever torch is set to.

    Args:
        model: the reference, in evaluation mode.
        engine: made of it.
        batches: as both take them, in the type of the model and on the device of both.
        threshold: least score of an object.

    Returns:
        The differences over all images; a NaN anywhere is NaN.
    """

    def reference(batch: list[Tensor]) -> dict[str, Tensor]:
        with full_float32():
            return model(batch)

    pairs = ((reference(batch), engine(batch)) for batch in batches)
    return compare_outputs(pairs, threshold)


def compare_outputs(
    pairs: Iterable[tuple[dict[str, Tensor], dict[str, Tensor]]], threshold: float = 0.7
) -> Parity:
    """`compare` where both have run: the model's outputs and the engine's, batch by batch."""
    parity = Parity(threshold=threshold)
    logits_error, boxes_error = _RelativeError(), _RelativeError()
    for expected, actual in pairs:
        expected = {key: value.float() for key, value in _last_layer(expected).items()}
        objects = [
            _differences(one, other, threshold)
            for one, other in zip(_decoded(expected), _decoded(actual), strict=True)
        ]
        parity = replace(
            parity,
            images=parity.images + len(objects),
            logits=_larger(parity.logits, expected["pred_logits"] - actual["pred_logits"]),
            boxes=_larger(parity.boxes, expected["pred_boxes"] - actual["pred_boxes"]),
            scores=max(parity.scores, *(difference for difference, _ in objects)),
            identical=parity.identical + sum(same for _, same in objects),
            logits_error=logits_error.with_more(expected["pred_logits"], actual["pred_logits"]),
            boxes_error=boxes_error.with_more(expected["pred_boxes"], actual["pred_boxes"]),
        )
    return parity


class _RelativeError:
    """Root mean square of differences over that of what was expected, of all so far."""

    def __init__(self):
        self._squares = torch.zeros(2, dtype=torch.float64)

    def with_more(self, expected: Tensor, actual: Tensor) -> float:
        both = torch.stack((actual - expected, expected)).double()
        self._squares += both.square().flatten(1).sum(1).cpu()
        of_differences, of_expected = self._squares.tolist()
        return math.sqrt(of_differences / of_expected)


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

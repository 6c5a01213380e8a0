"""This package's matcher under the losses of Hugging Face transformers.

    from detr_fast.integrations import transformers as fast

    print(fast.patch())          # or: with fast.patched(): ...

replaces how the losses of DETR and its relatives find their assignments; the losses stay as they
are. A matcher is replaced only if its source is one that was read when this module was written
(transformers 5.17); any other is left alone, and the report says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import pkgutil
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.scipy_compat import linear_sum_assignment
from ..ops.set_matching import set_matching
from ..training.matcher import index_lists
from ..training.target_checks import pack_if_sound
from ..training.targets import pack_targets

Indices = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PatchReport:
    """What a patch did, by the names of the matcher classes.

    Attributes:
        fused: cost and assignment come from this package, without a cost matrix of all images
            against all targets.
        solver_only: the class keeps its own costs, which have terms of their own (token maps,
            masks), and only the assignment comes from this package.
        left_alone: matchers that were found but not replaced, each with the reason.
    """

    fused: tuple[str, ...] = ()
    solver_only: tuple[str, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: costs and assignment by detr_fast" for name in self.fused]
        lines += [f"{name}: assignment by detr_fast" for name in self.solver_only]
        lines += [f"{name}: left alone, {reason}" for name, reason in self.left_alone.items()]
        return "\n".join(lines)


def patch() -> PatchReport:
    """Puts this package's matcher under the losses of the installed transformers.

    Takes effect for models already built, too, since their losses build a matcher at every step.
    Patching again changes nothing.

    Returns:
        What was replaced and what was not.

    Raises:
        ImportError: if transformers, or SciPy that its losses need, is not installed.

    Warns:
        UserWarning: if a matcher of the losses is not one that is known here.
    """
    fused, solver_only, left_alone = [], [], {}
    for owner in _matchers():
        name = owner.__name__
        known = _KNOWN.get(name)
        if owner in _replaced:
            (solver_only if known.forward is None else fused).append(name)
            continue
        if known is None or _fingerprint(owner.forward) != known.fingerprint:
            left_alone[name] = (
                "it is not known here"
                if known is None
                else "its source differs from the one that is known here"
            )
            continue
        if known.forward is None:
            module = inspect.getmodule(owner)
            _replaced[owner] = (module, "linear_sum_assignment", module.linear_sum_assignment)
            module.linear_sum_assignment = linear_sum_assignment
            solver_only.append(name)
        else:
            _replaced[owner] = (owner, "forward", owner.forward)
            owner.forward = known.forward
            fused.append(name)
    if left_alone:
        warnings.warn(
            "detr_fast left these matchers of transformers as they are: "
            + "; ".join(f"{name} ({reason})" for name, reason in left_alone.items()),
            UserWarning,
            stacklevel=2,
        )
    return PatchReport(tuple(fused), tuple(solver_only), left_alone)


def unpatch() -> None:
    """Gives transformers its own matchers back; does nothing where nothing is patched."""
    while _replaced:
        _, (owner, name, original) = _replaced.popitem()
        setattr(owner, name, original)


@contextlib.contextmanager
def patched() -> Iterator[PatchReport]:
    """`patch` for the time of a `with` block; a patch from before the block outlives it."""
    before = bool(_replaced)
    try:
        yield patch()
    finally:
        if not before:
            unpatch()


def _matchers() -> list[type[nn.Module]]:
    """The Hungarian matchers of all losses, each once, where it is defined."""
    losses = importlib.import_module("transformers.loss")
    found = {}
    for module_info in pkgutil.iter_modules(losses.__path__, f"{losses.__name__}."):
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            of_this_module = getattr(value, "__module__", None) == module.__name__
            if inspect.isclass(value) and "HungarianMatcher" in name and of_this_module:
                found[value] = None
    return list(found)


def _fingerprint(function: Callable) -> str:
    """A hash of a function's code, the same whatever its comments and layout."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(function)).readline)
    text = " ".join(
        token.string
        for token in tokens
        if token.type not in layout and not token.string.startswith(('"""', 'r"""'))
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def _match(
    matcher: nn.Module,
    outputs: Mapping[str, Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    groups: int = 1,
    **class_cost: Any,
) -> Indices:
    logits, boxes = outputs["logits"], outputs["pred_boxes"]
    # As theirs, queries that are left over behind the last group are not matched.
    used = logits.shape[1] // groups * groups
    labels = [target["class_labels"] for target in targets]
    target_boxes = [target["boxes"] for target in targets]
    packed = pack_if_sound(labels, target_boxes, logits.shape[2])
    if packed is None:  # theirs accept what ours would refuse
        pairs = zip(labels, target_boxes, strict=True)
        packed = pack_targets([{"labels": own, "boxes": its_boxes} for own, its_boxes in pairs])
    matched = set_matching(
        logits[None, :, :used],
        boxes[None, :, :used],
        packed.labels,
        packed.boxes,
        packed.offsets,
        weight_class=matcher.class_cost,
        weight_bbox=matcher.bbox_cost,
        weight_giou=matcher.giou_cost,
        groups=groups,
        **class_cost,
    )
    return index_lists(matched.cpu(), packed, used)


def _softmax(self, outputs, targets) -> Indices:
    """DETR: softmax class cost."""
    return _match(self, outputs, targets, class_cost="softmax")


def _focal(self, outputs, targets) -> Indices:
    """Deformable, Conditional and DAB DETR: focal class cost with fixed alpha and gamma."""
    return _match(self, outputs, targets, class_cost="focal")


def _rt_detr(self, outputs, targets) -> Indices:
    """RT-DETR, D-FINE, DEIM: the configuration chooses the class cost, its alpha and gamma."""
    if self.use_focal_loss:
        return _match(
            self, outputs, targets, class_cost="focal", alpha=self.alpha, gamma=self.gamma
        )
    return _match(self, outputs, targets, class_cost="softmax")


def _grouped(self, outputs, targets, group_detr) -> Indices:
    """LW-DETR, RF-DETR: focal class cost; groups of queries are matched apart."""
    return _match(self, outputs, targets, group_detr, class_cost="focal")


@dataclass(frozen=True)
class _Known:
    """How a matcher is replaced if its forward has this fingerprint; None: only its solver is."""

    forward: Callable | None
    fingerprint: str


_KNOWN = {
    "HungarianMatcher": _Known(_softmax, "b9661307521354bf"),
    "DeformableDetrHungarianMatcher": _Known(_focal, "c509fe2663c9e6fd"),
    "RTDetrHungarianMatcher": _Known(_rt_detr, "f56a11d8a2bdf56e"),
    "LwDetrHungarianMatcher": _Known(_grouped, "3f540ad9d5f19044"),
    "RfDetrHungarianMatcher": _Known(None, "f8aca7c6cc1828f1"),
    "GroundingDinoHungarianMatcher": _Known(None, "bc4d88f5ee47e311"),
}

# Class -> (where the original was, under which name, the original).
_replaced: dict[type, tuple[Any, str, Any]] = {}

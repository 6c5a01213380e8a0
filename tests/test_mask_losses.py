"""Losses of masks: transformers' values and gradients, both resolutions, only what is matched."""

from functools import partial

import pytest
import torch
from tolerances import LOSS_FLOAT64, MASK_HEAD_FLOAT64

from detr_fast import HungarianMatcher, SetCriterion, build_model
from detr_fast.data.batching import nested_tensor_from_images
from detr_fast.training.mask_losses import mask_losses, pack_masks

WEIGHTS = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2, "loss_mask": 1, "loss_dice": 1}
CLASSES, QUERIES = 5, 8


def make_criterion(losses=("masks",), **options):
    matcher = HungarianMatcher(1, 5, 2)
    return SetCriterion(CLASSES, matcher, WEIGHTS, 0.1, losses, **options).double()


def random_outputs(images, size=(6, 9)):
    outputs = {
        "pred_logits": torch.randn(images, QUERIES, CLASSES + 1, dtype=torch.float64),
        "pred_boxes": torch.rand(images, QUERIES, 4, dtype=torch.float64) * 0.5 + 0.2,
        "pred_masks": torch.randn(images, QUERIES, *size, dtype=torch.float64) * 3,
    }
    return {name: value.requires_grad_() for name, value in outputs.items()}


def random_targets(counts, sizes):
    return [
        {
            "labels": torch.randint(CLASSES, (count,)),
            "boxes": torch.rand(count, 4, dtype=torch.float64) * 0.5 + 0.2,
            "masks": torch.rand(count, *size) > 0.6,
        }
        for count, size in zip(counts, sizes, strict=True)
    ]


# Parity


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        ("image", ((24, 33), (17, 36), (20, 20))),
        # Targets on the predictions' own grid, where both resolutions are one.
        ("prediction", ((6, 9), (4, 7), (6, 2))),
        ("image", ((6, 9), (4, 7), (6, 2))),
    ],
)
def test_losses_and_gradients_of_transformers(resolution, sizes):
    theirs = pytest.importorskip("transformers.loss.loss_for_object_detection")
    outputs, targets = random_outputs(3), random_targets((3, 0, 5), sizes)
    losses = make_criterion(mask_resolution=resolution)(outputs, targets)
    assert set(losses) == {"loss_mask", "loss_dice"}
    gradient = torch.autograd.grad(sum(losses.values()), outputs["pred_masks"])[0]

    matcher = theirs.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    loss = theirs.ImageLoss(matcher, CLASSES, 0.1, ["masks"])
    their_targets = [
        {"class_labels": t["labels"], "boxes": t["boxes"], "masks": t["masks"].float()}
        for t in targets
    ]
    their_outputs = {**outputs, "logits": outputs["pred_logits"]}
    expected = loss(their_outputs, their_targets)
    expected_gradient = torch.autograd.grad(sum(expected.values()), outputs["pred_masks"])[0]
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.double(), rtol=LOSS_FLOAT64, atol=0)
    torch.testing.assert_close(
        gradient, expected_gradient, rtol=LOSS_FLOAT64, atol=LOSS_FLOAT64 * gradient.abs().max()
    )


def test_targets_are_averaged_over_the_predictions_cells():
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    target[0, :2, :2] = True
    target[0, 0, 2] = True
    logits = torch.tensor([[[3.0, -1.0], [-2.0, -2.0]]], dtype=torch.float64)
    soft = torch.tensor([[[1.0, 0.25], [0.0, 0.0]]], dtype=torch.float64)
    found = torch.tensor([True])
    actual = mask_losses(logits, target, found, 1)
    overlap = (logits.sigmoid() * soft).sum()
    expected = 1 - (2 * overlap + 1) / (logits.sigmoid().sum() + soft.sum() + 1)
    torch.testing.assert_close(actual["loss_dice"], expected, rtol=LOSS_FLOAT64, atol=0)


# Only what is matched


@pytest.mark.parametrize("counts", [(2, 4), (0, 3), (0, 0)])
def test_selected_masks_give_the_losses_and_gradients_of_all(counts):
    model = build_model(
        "detr_resnet50_panoptic",
        num_classes=CLASSES,
        num_queries=QUERIES,
        hidden_dim=128,
        enc_layers=1,
        dec_layers=2,
        dim_feedforward=32,
        dropout=0.0,
        backbone="resnet_tiny",
    ).double()
    sizes = ((40, 64), (56, 48))
    batch = nested_tensor_from_images([torch.randn(3, *s, dtype=torch.float64) for s in sizes])
    targets = random_targets(counts, sizes)
    criterion = make_criterion(["labels", "boxes", "masks"], aux_repeats=2)

    def losses_and_gradients(**options):
        model.zero_grad()
        losses = criterion(model(batch, **options), targets)
        criterion.total(losses).backward()
        return losses, {name: p.grad for name, p in model.named_parameters()}

    expected, expected_gradients = losses_and_gradients()
    select = partial(criterion.matched_queries, targets=targets)
    actual, gradients = losses_and_gradients(select=select)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=MASK_HEAD_FLOAT64, equal_nan=True
        )
    for name, value in expected_gradients.items():
        if value is not None:
            torch.testing.assert_close(gradients[name], value, rtol=0, atol=MASK_HEAD_FLOAT64)


def test_more_targets_than_queries_weigh_nothing_beyond():
    outputs = random_outputs(1)
    targets = random_targets((QUERIES + 3,), ((6, 9),))
    criterion = make_criterion()
    selected = criterion.matched_queries(outputs, targets)
    assert [len(own) for own in selected] == [QUERIES + 3]
    masks = [outputs["pred_masks"][0, selected[0]]]
    chosen = {**outputs, "selected_masks": masks}
    losses = criterion(outputs, targets)
    assert criterion(chosen, targets)["loss_mask"] == losses["loss_mask"]
    matched = int((criterion.matcher(outputs, targets)[0][0] >= 0).sum())
    assert matched == QUERIES


def test_16_bit_masks_are_compared_in_float32():
    outputs, targets = random_outputs(1), random_targets((2,), ((6, 9),))
    half = {name: value.detach().bfloat16() for name, value in outputs.items()}
    assert make_criterion()(half, targets)["loss_mask"].dtype == torch.float32


# Targets


def test_masks_are_packed_to_the_largest_image():
    targets = random_targets((1, 2), ((4, 9), (7, 3)))
    packed = pack_masks(targets)
    assert packed.shape == (3, 7, 9)
    assert packed.dtype == torch.bool
    assert torch.equal(packed[0, :4], targets[0]["masks"][0])
    assert packed[0, 4:].count_nonzero() == 0
    assert torch.equal(packed[1:, :, :3], targets[1]["masks"])


def test_targets_without_masks_are_refused():
    targets = random_targets((2,), ((6, 9),))
    del targets[0]["masks"]
    with pytest.raises(ValueError, match=r"targets\[0\] has no 'masks'.*masks=True"):
        make_criterion()(random_outputs(1), targets)


def test_masks_that_do_not_fit_the_labels_are_refused():
    targets = random_targets((2,), ((6, 9),))
    targets[0]["masks"] = targets[0]["masks"][:1]
    with pytest.raises(ValueError, match=r"have shape \(1, 6, 9\); expected \(2, H, W\)"):
        make_criterion()(random_outputs(1), targets)


def test_outputs_without_masks_are_refused():
    outputs = random_outputs(1)
    del outputs["pred_masks"]
    with pytest.raises(ValueError, match="outputs have no masks"):
        make_criterion()(outputs, random_targets((2,), ((6, 9),)))


def test_masks_of_other_queries_are_refused():
    outputs = random_outputs(1) | {"selected_masks": [torch.zeros(1, 6, 9)]}
    with pytest.raises(ValueError, match="1 selected_masks for 2 targets"):
        make_criterion()(outputs, random_targets((2,), ((6, 9),)))

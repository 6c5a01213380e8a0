"""The set criterion: parity with an independent implementation, batches that add up, no waiting."""

import json
import math
import re

import pytest
import torch
from tolerances import ACCUMULATED_FLOAT64, LOSS_FLOAT64

import detr_fast
from detr_fast.training import target_checks as checks_module
from detr_fast.training.criterion import SetCriterion, auxiliary_weights
from detr_fast.training.loss_normalizer import LossNormalizer
from detr_fast.training.matcher import HungarianMatcher
from detr_fast.training.targets import pack_targets

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
LOSSES = ["labels", "boxes", "cardinality"]


def make_criterion(num_classes=5, layers=3, losses=LOSSES, aux_repeats=1):
    weights = auxiliary_weights(WEIGHTS, layers)
    matcher = HungarianMatcher(1, 5, 2)
    return SetCriterion(num_classes, matcher, weights, 0.1, losses, aux_repeats).double()


def random_outputs(images, num_queries=12, num_classes=5, layers=3, dtype=torch.float64):
    """Leaves with gradients, as the model's dictionary."""
    made = [
        {
            "pred_logits": torch.randn(images, num_queries, num_classes + 1, dtype=dtype),
            "pred_boxes": torch.rand(images, num_queries, 4, dtype=dtype) * 0.5 + 0.2,
        }
        for _ in range(layers)
    ]
    for layer in made:
        for value in layer.values():
            value.requires_grad_()
    *earlier, last = made
    return last | ({"aux_outputs": earlier} if earlier else {})


def random_targets(sizes, num_classes=5, dtype=torch.float64):
    return [
        {
            "labels": torch.randint(num_classes, (size,)),
            "boxes": torch.rand(size, 4, dtype=dtype) * 0.5 + 0.2,
        }
        for size in sizes
    ]


def leaves(outputs):
    layers = [*outputs.get("aux_outputs", []), outputs]
    return [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes")]


def gradients(outputs):
    return [leaf.grad for leaf in leaves(outputs)]


def images_of(outputs, chosen):
    """The same leaves, restricted to some images."""
    taken = {name: outputs[name][chosen] for name in ("pred_logits", "pred_boxes")}
    aux = [
        {name: value[chosen] for name, value in layer.items()} for layer in outputs["aux_outputs"]
    ]
    return taken | {"aux_outputs": aux}


# --- against an independent implementation ---


def coco_targets(shared_data):
    """Real annotations: the training images of coco_tiny, crowd and empty boxes left out."""
    folder = shared_data / "coco_tiny"
    path = next(iter(sorted(folder.rglob("*train*.json"))), None)
    if path is None:
        pytest.skip("no training annotations under ../shared/data/coco_tiny")
    content = json.loads(path.read_text())
    targets = []
    for image in content["images"]:
        own = [
            a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).reshape(-1, 4)
        boxes[:, :2] += boxes[:, 2:] / 2
        boxes /= torch.tensor([image["width"], image["height"]] * 2)
        labels = torch.tensor([a["category_id"] for a in own], dtype=torch.int64)
        targets.append({"labels": labels, "boxes": boxes, "image_id": torch.tensor(image["id"])})
    return targets


def their_losses(outputs, targets, num_classes):
    theirs = pytest.importorskip("transformers.loss.loss_for_object_detection")
    criterion = theirs.ImageLoss(
        theirs.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2), num_classes, 0.1, LOSSES
    ).double()

    def renamed(layer):
        return {"logits": layer["pred_logits"], "pred_boxes": layer["pred_boxes"]}

    renamed_outputs = renamed(outputs)
    if "aux_outputs" in outputs:
        renamed_outputs["auxiliary_outputs"] = [renamed(layer) for layer in outputs["aux_outputs"]]
    renamed_targets = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    return criterion(renamed_outputs, renamed_targets)


@pytest.mark.parametrize("layers", [1, 6])
@pytest.mark.parametrize("source", ["random", "random with empty images", "coco"])
def test_terms_and_gradients_of_transformers(layers, source, request):
    if source == "coco":
        num_classes, num_queries = 91, 100
        # Their pairwise GIoU of all images against all targets grows with the square of the batch.
        targets = coco_targets(request.getfixturevalue("shared_data"))[: 48 // layers]
    else:
        num_classes, num_queries = 5, 12
        targets = random_targets((3, 7, 12) if source == "random" else (0, 4, 0))
    outputs = random_outputs(len(targets), num_queries, num_classes, layers)
    criterion = make_criterion(num_classes, layers)

    ours = criterion(outputs, targets)
    criterion.total(ours).backward()
    our_gradients = gradients(outputs)
    for leaf in leaves(outputs):
        leaf.grad = None
    theirs = their_losses(outputs, targets, num_classes)
    criterion.total(theirs).backward()

    assert ours.keys() - theirs.keys() == {"class_error"}
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=LOSS_FLOAT64), name
    for mine, other in zip(our_gradients, gradients(outputs), strict=True):
        torch.testing.assert_close(
            mine, other, rtol=LOSS_FLOAT64, atol=LOSS_FLOAT64 * other.abs().max()
        )


def test_class_error_is_the_share_of_matched_targets_with_another_class():
    outputs, targets = random_outputs(3), random_targets((4, 0, 6))
    wrong = 0
    for image, (i, j) in enumerate(HungarianMatcher(1, 5, 2)(outputs, targets)):
        likeliest = outputs["pred_logits"][image, i].argmax(-1)
        wrong += int((likeliest != targets[image]["labels"][j]).sum())
    assert make_criterion()(outputs, targets)["class_error"].item() == pytest.approx(10.0 * wrong)


# --- names ---


def test_names_are_those_of_the_original():
    losses = make_criterion()(random_outputs(2), random_targets((1, 2)))
    per_layer = ["loss_ce", "loss_bbox", "loss_giou", "cardinality_error"]
    expected = {"class_error", *per_layer}
    expected |= {f"{name}_{layer}" for name in per_layer for layer in (0, 1)}
    assert set(losses) == expected
    assert all(value.dim() == 0 for value in losses.values())


def test_auxiliary_losses_are_numbered_from_the_first_layer():
    outputs, targets = random_outputs(2), random_targets((1, 2))
    together = make_criterion()(outputs, targets)
    for layer, own in enumerate([*outputs["aux_outputs"], outputs]):
        alone = make_criterion()({k: own[k] for k in ("pred_logits", "pred_boxes")}, targets)
        suffix = f"_{layer}" if layer < 2 else ""
        for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
            torch.testing.assert_close(together[name + suffix], alone[name])


def test_only_what_was_asked_for_is_computed():
    losses = make_criterion(layers=1, losses=["boxes"])(
        random_outputs(1, layers=1), random_targets((2,))
    )
    assert set(losses) == {"loss_bbox", "loss_giou"}


def test_total_is_the_weighted_sum_of_the_weighted_names():
    criterion = make_criterion()
    losses = criterion(random_outputs(2), random_targets((1, 2)))
    by_hand = sum(losses[name] * weight for name, weight in criterion.weight_dict.items())
    torch.testing.assert_close(criterion.total(losses), by_hand)


# --- batches that add up ---


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("sizes", [(3, 0, 7, 1), (0, 0, 5, 20), (0, 0, 0, 0)])
@pytest.mark.parametrize("aux_repeats", [1, 3])
def test_micro_batches_under_one_normalizer_are_the_large_batch(sizes, aux_repeats):
    outputs, targets = random_outputs(4), random_targets(sizes)
    criterion = make_criterion(aux_repeats=aux_repeats)
    large = criterion(outputs, targets)
    criterion.total(large).backward()
    expected = gradients(outputs)
    for leaf in leaves(outputs):
        leaf.grad = None

    close = {"rtol": ACCUMULATED_FLOAT64, "atol": ACCUMULATED_FLOAT64}
    normalizer = criterion.normalizer(targets, num_queries=12)
    added: dict[str, torch.Tensor] = {}
    for chosen in (slice(0, 1), slice(1, 3), slice(3, 4)):
        small = criterion(images_of(outputs, chosen), targets[chosen], normalizer)
        criterion.total(small).backward()
        added = {name: added.get(name, 0) + value.detach() for name, value in small.items()}

    for mine, other in zip(gradients(outputs), expected, strict=True):
        torch.testing.assert_close(mine, other, **close)
    for name, value in large.items():
        torch.testing.assert_close(added[name], value.detach(), equal_nan=True, **close)


def test_normalizer_needs_only_shapes():
    targets = random_targets((3, 0, 20))
    counted = make_criterion().normalizer(targets, num_queries=12)
    assert counted.boxes == 23
    assert counted.matched == 15
    assert counted.images == 3
    assert counted.class_weight == pytest.approx(15 + 0.1 * (36 - 15))


def test_normalizer_of_tensors():
    outputs, targets = random_outputs(2), random_targets((3, 2))
    criterion = make_criterion()
    numbers = criterion.normalizer(targets, 12)
    tensors = LossNormalizer(
        *(
            torch.tensor(float(v))
            for v in (numbers.boxes, numbers.class_weight, numbers.matched, numbers.images)
        )
    )
    for one, other in zip(
        criterion(outputs, targets, numbers).values(),
        criterion(outputs, targets, tensors).values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        assert one.dtype == other.dtype


# --- repeated targets in the auxiliary layers ---


def test_auxiliary_layers_learn_repeated_targets_and_the_last_does_not():
    outputs, targets = random_outputs(3), random_targets((2, 0, 3))
    losses = make_criterion(aux_repeats=4)(outputs, targets)
    repeated = [{name: torch.cat([v] * 4) for name, v in target.items()} for target in targets]
    *aux, last = [*outputs["aux_outputs"], {k: outputs[k] for k in ("pred_logits", "pred_boxes")}]
    one_layer = make_criterion(layers=1)
    expected = one_layer(last, targets)
    for layer, layer_outputs in enumerate(aux):
        of_layer = one_layer(layer_outputs, repeated)
        of_layer.pop("class_error")
        expected |= {f"{name}_{layer}": value for name, value in of_layer.items()}
    assert set(losses) == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(
            value, expected[name], rtol=ACCUMULATED_FLOAT64, atol=ACCUMULATED_FLOAT64
        )


def test_targets_are_not_repeated_beyond_the_queries(recwarn):
    outputs, targets = random_outputs(2), random_targets((5, 1))
    criterion = make_criterion(aux_repeats=3)
    auxiliary = criterion.normalizer(targets, num_queries=12).auxiliary
    assert auxiliary.boxes == auxiliary.matched == 5 * 2 + 1 * 3
    criterion(outputs, targets)
    assert not [w for w in recwarn if "queries" in str(w.message)]


def test_an_impossible_number_of_repeats_is_refused():
    with pytest.raises(ValueError, match="aux_repeats is 0"):
        make_criterion(aux_repeats=0)


# --- edges ---


def test_every_image_empty_still_gives_every_head_a_gradient():
    outputs, targets = random_outputs(2), random_targets((0, 0))
    criterion = make_criterion()
    losses = criterion(outputs, targets)
    assert math.isnan(losses["class_error"])
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    assert losses["loss_ce"] > 0
    criterion.total(losses).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(outputs))
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves(outputs)[::2])


@pytest.mark.filterwarnings("ignore:an image has")
def test_targets_without_a_query_weigh_nothing():
    outputs, targets = random_outputs(2, num_queries=4), random_targets((9, 2))
    losses = make_criterion()(outputs, targets)
    matched = [
        {name: value[j] for name, value in target.items()}
        for target, (_, j) in zip(targets, HungarianMatcher(1, 5, 2)(outputs, targets), strict=True)
    ]
    fewer = make_criterion(layers=1)(
        {k: outputs[k] for k in ("pred_logits", "pred_boxes")}, matched
    )
    torch.testing.assert_close(losses["loss_ce"], fewer["loss_ce"])
    torch.testing.assert_close(losses["class_error"], fewer["class_error"])
    # As in the original, boxes are counted before it is known which ones find a query.
    torch.testing.assert_close(losses["loss_bbox"] * 11, fewer["loss_bbox"] * 6)
    torch.testing.assert_close(losses["loss_giou"] * 11, fewer["loss_giou"] * 6)


@pytest.mark.filterwarnings("ignore:box")
def test_zero_area_target_has_finite_losses_and_gradients():
    outputs = random_outputs(1)
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.0]])}]
    criterion = make_criterion()
    losses = criterion(outputs, targets)
    criterion.total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves(outputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_of_half_types_are_float32(dtype):
    outputs = random_outputs(2, dtype=dtype)
    criterion = make_criterion().float()
    losses = criterion(outputs, random_targets((2, 3), dtype=torch.float32))
    assert all(value.dtype == torch.float32 for value in losses.values())
    criterion.total(losses).backward()
    assert all(leaf.grad.dtype == dtype for leaf in leaves(outputs))


def test_a_broken_prediction_does_not_stop_the_step():
    outputs, targets = random_outputs(2), random_targets((2, 3))
    with torch.no_grad():
        outputs["pred_boxes"][0, 0] = float("nan")
    losses = make_criterion()(outputs, targets)
    assert losses["loss_bbox_0"].isfinite()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": ["label"]}, "unknown loss 'label'; did you mean 'labels'?"),
        (
            {"weight_dict": {"loss_box": 1}},
            "unknown name in weight_dict 'loss_box'; did you mean 'loss_bbox'?",
        ),
        ({"weight_dict": {"loss_bbox_x": 1}}, "unknown name in weight_dict 'loss_bbox_x'"),
    ],
)
def test_misspelt_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SetCriterion(
            **{
                "num_classes": 5,
                "matcher": HungarianMatcher(),
                "weight_dict": WEIGHTS,
                "eos_coef": 0.1,
                "losses": LOSSES,
            }
            | arguments
        )


def test_a_matcher_of_one_layer_only_is_refused():
    with pytest.raises(TypeError, match="Identity has no method match_layers"):
        SetCriterion(5, torch.nn.Identity(), WEIGHTS, 0.1, LOSSES)


def test_shapes_that_do_not_fit_are_named():
    outputs, targets = random_outputs(2), random_targets((1, 1))
    with pytest.raises(
        ValueError, match=r"must have shape \(B, Q, 8\), 7 classes and no-object; got"
    ):
        make_criterion(num_classes=7)(outputs, targets)
    with pytest.raises(ValueError, match="targets for 1 images but predictions for 2"):
        make_criterion()(outputs, targets[:1])
    del outputs["pred_boxes"]
    with pytest.raises(ValueError, match="no 'pred_boxes'"):
        make_criterion()(outputs, targets)


# --- no waiting, no pairwise tensors ---


# Seen by the profiler, since autograd takes other paths where a dispatch mode looks on.
WAITING = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


def profiled(sizes, layers, monkeypatch):
    """Forward and backward without the host's own checks of values, on matches known beforehand."""
    monkeypatch.setattr(checks_module, "_check_boxes", lambda packed: None)
    monkeypatch.setattr(checks_module, "_check_labels", lambda packed, num_classes: None)
    packed = pack_targets(random_targets(sizes))
    in_order = torch.cat([torch.arange(size) for size in packed.sizes])
    matcher = HungarianMatcher()
    monkeypatch.setattr(matcher, "match_layers", lambda *_: in_order.expand(layers, -1))
    criterion = SetCriterion(5, matcher, auxiliary_weights(WEIGHTS, layers), 0.1, LOSSES).double()
    outputs = random_outputs(len(sizes), max(sizes), layers=layers)
    assert len(packed.image_index) == sum(sizes)
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        criterion.total(criterion(outputs, packed)).backward()
    return [event for event in profile.function_events if event.name.startswith("aten::")]


def test_nothing_waits_for_the_device(monkeypatch):
    names = {event.name for event in profiled((3, 0, 7), 3, monkeypatch)}
    assert "aten::scatter_" in names
    assert names.isdisjoint(WAITING)


def test_no_loop_over_images_and_no_tensor_of_all_pairs(monkeypatch):
    few = profiled((200, 200), 2, monkeypatch)
    many = profiled((25,) * 16, 2, monkeypatch)
    assert len(few) == len(many)
    largest = max(math.prod(shape) for event in few + many for shape in event.input_shapes)
    assert largest < 400 * 400 / 10


def test_public_name():
    assert detr_fast.SetCriterion is SetCriterion

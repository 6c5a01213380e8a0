"""Packed targets and the checks that turn bad ground truth into a sentence."""

import warnings

import pytest
import torch

from detr_fast.training import target_checks as checks_module
from detr_fast.training.counted_warnings import CountedWarning
from detr_fast.training.target_checks import validate_targets
from detr_fast.training.targets import pack_targets

BOX = [0.5, 0.5, 0.2, 0.4]


def target(labels, boxes, image_id=None):
    made = {"labels": torch.tensor(labels), "boxes": torch.tensor(boxes)}
    return made if image_id is None else made | {"image_id": torch.tensor([image_id])}


def test_packs_in_order_with_offsets_on_the_host():
    packed = pack_targets([target([3, 1], [BOX, BOX]), target([2], [[0.1, 0.2, 0.1, 0.1]])])
    assert packed.labels.tolist() == [3, 1, 2]
    assert packed.boxes.shape == (3, 4)
    assert packed.offsets.tolist() == [0, 2, 3]
    assert packed.sizes == (2, 1)
    assert packed.image_index.tolist() == [0, 0, 1]
    assert packed.num_matched(1) == 2


def test_repeated_targets_stay_with_their_image():
    packed = pack_targets([target([1, 2], [BOX, BOX]), target([], []), target([3], [BOX])])
    repeated = packed.repeated(3, num_queries=4)
    assert repeated.labels.tolist() == [1, 2, 1, 2, 3, 3, 3]
    assert repeated.sizes == (4, 0, 3)
    assert repeated.boxes.shape == (7, 4)
    overfull = packed.repeated(3, num_queries=1)
    assert overfull.labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize("boxes", [torch.empty(0), torch.empty(0, 4), torch.empty(0, dtype=int)])
def test_empty_images_of_any_shape_are_accepted(boxes):
    packed = validate_targets(
        [{"labels": torch.empty(0), "boxes": boxes}, target([1], [BOX])], num_classes=5
    )
    assert packed.sizes == (0, 1)
    assert packed.boxes.shape == (1, 4)
    assert packed.labels.dtype == torch.int64


def test_no_image_at_all():
    assert pack_targets([]).sizes == ()


def test_int32_labels_are_accepted():
    packed = pack_targets(
        [{"labels": torch.tensor([4], dtype=torch.int32), "boxes": torch.rand(1, 4)}]
    )
    assert packed.labels.dtype == torch.int64


def test_double_boxes_stay_double():
    assert (
        pack_targets(
            [{"labels": torch.tensor([0]), "boxes": torch.rand(1, 4).double()}]
        ).boxes.dtype
        == torch.float64
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            target([1], [[12.0, 30.0, 612.0, 400.0]], 17),
            r"boxes of image 17 reach 612\.0; expected normalised cxcywh in \[0, 1\]: pixel xyxy\?",
        ),
        (
            target([1], [[0.5, 0.5, 0.1, 1.5]], 17),
            r"image 17 reach 1\.5; expected normalised cxcywh in \[0, 1\]$",
        ),
        (target([1], [[-0.5, 0.5, 0.1, 0.5]], 17), r"image 17 reach -0\.5"),
        (target([1, 1], [BOX, [0.5, 0.5, -0.2, 0.1]], 9), r"box 1 of image 9 has width -0\.2"),
        (target([1], [[0.5, float("nan"), 0.2, 0.1]], 9), "box 0 of image 9 is not finite"),
        (
            target([95], [BOX], 4),
            r"label 95 \(target 0 of image 4\) is outside the model's 5 classes",
        ),
        (target([5], [BOX], 4), r"label 5 \(target 0 of image 4\) is the no-object slot"),
        (target([-1], [BOX], 4), r"label -1 \(target 0 of image 4\) is negative"),
        (target([1, 2], [BOX], 8), r"targets\[1\] \(image 8\) has 2 labels but 1 boxes"),
        (target([1], [BOX[:3]]), r"boxes of targets\[1\] must have shape \(n, 4\); got \(1, 3\)"),
        (target([[1]], [BOX]), r"labels of targets\[1\] must have shape \(n,\)"),
        ({"boxes": torch.rand(1, 4)}, r"targets\[1\] has no 'labels'; it has \['boxes'\]"),
    ],
)
def test_bad_target_is_refused_with_image_and_value(bad, message):
    with pytest.raises(ValueError, match=message):
        validate_targets([target([0], [BOX], 3), bad], num_classes=5)


@pytest.mark.parametrize("labels", [torch.tensor([1.0]), torch.tensor([True])])
def test_labels_that_are_no_integers(labels):
    with pytest.raises(TypeError, match="must be integers"):
        pack_targets([{"labels": labels, "boxes": torch.rand(1, 4)}])


@pytest.mark.parametrize("targets", [{"labels": 1}, torch.zeros(3), None, [torch.zeros(3)]])
def test_targets_that_are_no_list_of_dicts(targets):
    with pytest.raises(TypeError, match="must be a"):
        pack_targets(targets)


def test_image_without_id_is_named_by_its_place():
    with pytest.raises(ValueError, match="image 0 of the batch"):
        validate_targets([target([7], [BOX])], num_classes=5)


def test_fewer_targets_than_images_names_both_numbers():
    with pytest.raises(ValueError, match="targets for 1 images but predictions for 2"):
        validate_targets([target([0], [BOX])], num_classes=5, num_images=2)


def test_zero_area_is_accepted_and_warned_about_once(monkeypatch):
    monkeypatch.setattr(checks_module, "zero_area_boxes", CountedWarning(powers_of_ten=False))
    flat = [target([0], [[0.5, 0.5, 0.0, 0.3]], 12)]
    with pytest.warns(UserWarning, match="box 0 of image 12 has no area"):
        validate_targets(flat, num_classes=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            validate_targets(flat, num_classes=5)
    assert checks_module.zero_area_boxes.count == 21


def test_counted_warning_speaks_at_powers_of_ten():
    counted = CountedWarning()
    spoken = []
    for _ in range(120):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            counted.record(1, "too many")
        spoken += [counted.count] * len(caught)
    assert spoken == [1, 10, 100]


def test_rounding_of_half_types_is_no_error():
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.004]], dtype=torch.bfloat16)
    validate_targets([{"labels": torch.tensor([0]), "boxes": boxes}], num_classes=1)


# --- padded targets -------------------------------------------------------------------------------


def three_images():
    return pack_targets(
        [target([1, 2], [BOX, [0.1, 0.2, 0.1, 0.1]], 7), target([], [], 8), target([3], [BOX], 9)]
    )


def test_padded_targets_have_room_behind_those_of_each_image():
    padded = three_images().padded(4)
    assert padded.labels.shape == (12,)
    assert padded.offsets.tolist() == [0, 4, 8, 12]
    assert padded.counts.tolist() == [2, 0, 1]
    assert padded.present().nonzero()[:, 0].tolist() == [0, 1, 8]
    assert padded.labels[padded.present()].tolist() == [1, 2, 3]
    assert padded.image_index.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert padded.boxes.isfinite().all()


def test_padding_is_undone_and_counts_the_same():
    packed = three_images()
    again = packed.padded(5).compact()
    for name in ("labels", "boxes", "offsets"):
        assert torch.equal(getattr(again, name), getattr(packed, name))
    assert again.image_ids == packed.image_ids
    assert packed.compact() is packed
    for num_queries in (1, 2, 100):
        assert packed.padded(5).num_matched(num_queries) == packed.num_matched(num_queries)
    assert packed.padded(2).num_targets() == packed.num_targets() == 3


@pytest.mark.parametrize(("times", "num_queries"), [(3, 4), (3, 1), (2, 100), (1, 100)])
def test_padded_targets_repeat_as_others_do(times, num_queries):
    packed = three_images()
    repeated = packed.padded(3).repeated(times, num_queries).compact()
    expected = packed.repeated(times, num_queries)
    for name in ("labels", "boxes", "offsets"):
        assert torch.equal(getattr(repeated, name), getattr(expected, name))


def test_padded_targets_are_overwritten_in_place():
    padded = three_images().padded(4)
    addresses = [getattr(padded, name).data_ptr() for name in ("labels", "boxes", "counts")]
    others = pack_targets([target([4], [BOX]), target([0, 1], [BOX, BOX]), target([], [])])
    padded.copy_(others.padded(4))
    assert [getattr(padded, n).data_ptr() for n in ("labels", "boxes", "counts")] == addresses
    assert padded.compact().labels.tolist() == [4, 0, 1]
    assert padded.compact().offsets.tolist() == [0, 1, 3, 3]


def test_padding_that_cannot_be_is_refused():
    packed = three_images()
    with pytest.raises(ValueError, match="image 7 has 2 targets, more than the capacity of 1"):
        packed.padded(1)
    with pytest.raises(ValueError, match="padded already"):
        packed.padded(3).padded(4)
    with pytest.raises(ValueError, match=r"got \(15, 4\) boxes for \(12, 4\)"):
        packed.padded(4).copy_(packed.padded(5))


def test_no_image_can_be_padded():
    padded = pack_targets([]).padded(3)
    assert padded.labels.shape == (0,)
    assert padded.compact().sizes == ()

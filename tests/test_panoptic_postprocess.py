"""Instance masks and panoptic maps from logits: by hand, golden, and against transformers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tolerances import PANOPTIC_QUALITY

from detr_fast.data.label_map import COCO_PANOPTIC_LABEL_MAP, LabelMap
from detr_fast.evaluation.panoptic import PanopticEvaluator
from detr_fast.inference.panoptic import PostProcessMasks, PostProcessPanoptic, confident_queries

GOLDEN = Path(__file__).parent / "golden" / "panoptic.json"
# Indices 0 to 3; category ids 10, 20 are things and 30, 40 stuff.
LABELS = LabelMap((10, 20, 30, 40), ("cat", "dog", "grass", "sky"), frozenset({30, 40}))
NO_OBJECT = 4


def logits_of(labels, confidence=8.0):
    """(1, Q, 5) logits whose likeliest classes these are."""
    return torch.nn.functional.one_hot(torch.tensor([labels]), NO_OBJECT + 1) * confidence


def outputs_of(labels, masks, confidence=8.0):
    return {
        "pred_logits": logits_of(labels, confidence),
        "pred_masks": torch.as_tensor(masks, dtype=torch.float32)[None],
    }


def rows(*texts):
    """Maps of digits as logits: 2 where the digit is 1, -2 elsewhere."""
    return torch.tensor([[[4.0 * (c == "1") - 2 for c in row] for row in t.split()] for t in texts])


def panoptic(outputs, target=None, **options):
    size = tuple(outputs["pred_masks"].shape[-2:])
    (found,) = PostProcessPanoptic(LABELS, **options)(
        outputs, size, [size], None if target is None else [target]
    )
    return found


# Panoptic maps by hand


def test_each_pixel_goes_to_the_largest_logit():
    masks = rows("1110 1110", "0011 0011")
    masks[1] += 0.5
    found = panoptic(outputs_of([0, 1], masks), smallest=0)
    assert found.ids.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert found.ids.dtype == np.int32
    info = [(s["id"], s["category_id"], s["isthing"], s["area"]) for s in found.segments_info]
    assert info == [(1, 10, 1, 4), (2, 20, 1, 4)]
    assert all(s["score"] > 0.99 for s in found.segments_info)


def test_uncertain_queries_and_no_object_get_nothing():
    outputs = outputs_of([0, NO_OBJECT, 1], rows("10 10", "11 11", "01 01"))
    outputs["pred_logits"][0, 2] = torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0])
    assert [q.tolist() for q in confident_queries(outputs)] == [[0]]
    found = panoptic(outputs, smallest=0)
    assert found.ids.tolist() == [[1, 1], [1, 1]]
    assert [q.tolist() for q in confident_queries(outputs, 0.5)] == [[0, 2]]


def test_nothing_found_is_all_void():
    found = panoptic(outputs_of([NO_OBJECT] * 2, rows("10 10", "01 01")), target=(3, 5))
    assert found.ids.shape == (3, 5)
    assert not found.ids.any()
    assert found.segments_info == []


def test_segments_of_one_stuff_class_are_merged_and_things_are_not():
    masks = rows("11000000 11000000 11000000", "00111000 00111000 00111000",
                 "00000110 00000110 00000110", "00000001 00000001 00000001")  # fmt: skip
    found = panoptic(outputs_of([2, 0, 2, 0], masks), smallest=2)
    assert found.ids[0].tolist() == [1, 1, 2, 2, 2, 1, 1, 3]
    areas = [(s["category_id"], s["area"]) for s in found.segments_info]
    assert areas == [(30, 12), (10, 9), (10, 3)]
    # As the original's code has it, the second piece of grass goes to whoever comes next.
    masks[1] += 0.1
    found = panoptic(outputs_of([2, 0, 2, 0], masks), smallest=2, merge_stuff=False)
    assert found.ids[0].tolist() == [1, 1, 2, 2, 2, 2, 2, 3]


def test_small_segments_are_removed_and_their_pixels_given_away():
    masks = rows("1111 1111 1111", "0000 0000 0000", "0000 0000 0000")
    masks[1, :2, :2], masks[2, 2, :] = 3.0, 3.0
    labels = [0, 1, 1]
    areas = [s["area"] for s in panoptic(outputs_of(labels, masks), smallest=3).segments_info]
    assert areas == [4, 4, 4]
    found = panoptic(outputs_of(labels, masks), smallest=4)
    assert found.segments_info == []
    masks[2, 1, 3] = 3.0
    found = panoptic(outputs_of(labels, masks), smallest=4)
    assert [(s["category_id"], s["area"]) for s in found.segments_info] == [(20, 12)]


def test_small_segments_are_removed_at_once():
    # Without the second the first would have three pixels, but both are small to begin with.
    masks = torch.tensor([[[2.0, 2, 2, 0, 0, 0]], [[3.0, 0, 0, 0, 0, 0]], [[1.0, 1, 1, 1, 1, 1]]])
    found = panoptic(outputs_of([0, 1, 1], masks), smallest=1)
    assert [s["area"] for s in found.segments_info] == [3, 3]
    found = panoptic(outputs_of([0, 1, 1], masks), smallest=2)
    assert found.ids.tolist() == [[1] * 6]


def test_padding_of_the_batch_is_cut_off():
    masks = rows("1000 1000 1000 1000", "0111 0111 1111 1111")
    outputs = {key: value.expand(2, -1, -1, -1) if value.dim() == 4 else value.expand(2, -1, -1)
               for key, value in outputs_of([0, 1], masks).items()}  # fmt: skip
    process = PostProcessPanoptic(LABELS, smallest=0)
    found = process(outputs, (4, 4), [(4, 4), (2, 2)], [(4, 4), (4, 4)])
    assert found[0].ids[3].tolist() == [1, 2, 2, 2]
    assert found[1].ids.tolist() == [[1, 1, 2, 2]] * 4


def test_selected_masks_give_the_same_map():
    torch.manual_seed(3)
    outputs = outputs_of([0, 2, NO_OBJECT, 2, 1], torch.randn(5, 6, 7))
    expected = panoptic(outputs)
    selected = {
        "pred_logits": outputs["pred_logits"],
        "selected_queries": [torch.tensor([0, 1, 2, 3, 4])],
        "selected_masks": [outputs["pred_masks"][0]],
    }
    (actual,) = PostProcessPanoptic(LABELS)(selected, (6, 7), [(6, 7)])
    assert np.array_equal(actual.ids, expected.ids)
    assert actual.segments_info == expected.segments_info


def test_maps_do_not_depend_on_how_many_masks_are_enlarged_at_once(monkeypatch):
    torch.manual_seed(4)
    outputs = outputs_of([0, 1, 0, 1, 2, 3], torch.randn(6, 5, 6))
    process = PostProcessPanoptic(LABELS)
    (expected,) = process(outputs, (20, 24), [(18, 24)], [(30, 35)])
    monkeypatch.setattr("detr_fast.inference.panoptic._BYTES_AT_ONCE", 4 * 20 * 24 * 2)
    (actual,) = process(outputs, (20, 24), [(18, 24)], [(30, 35)])
    assert np.array_equal(actual.ids, expected.ids)


def expected_map(labels, scores, logits, smallest, merge):
    """The map of some queries by the definition, a pixel at a time: ids and what they are."""
    queries = list(range(len(labels)))
    while queries:
        winners = np.array(queries)[logits[queries].argmax(0)]
        first = {}
        for q in queries:
            first.setdefault(labels[q] if labels[q] >= 2 else -1 - q, q)
        segment = {q: first[labels[q] if labels[q] >= 2 else -1 - q] for q in queries}
        owners = np.vectorize(segment.get)(winners)
        area = {q: int((owners == q).sum()) for q in queries}
        stay = [q for q in queries if area[segment[q]] > smallest and (merge or segment[q] == q)]
        if stay == queries:
            shown = sorted(set(segment.values()))
            members = [[q for q in queries if segment[q] == s] for s in shown]
            ids = np.searchsorted(shown, owners) + 1
            return ids, [
                (labels[s], area[s], max(scores[q] for q in own))
                for s, own in zip(shown, members, strict=True)
            ]
        queries = stay
    return np.zeros(logits.shape[1:], dtype=int), []


@pytest.mark.parametrize("asking", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("smallest", [0, 3, 12, 1000])
def test_maps_are_those_of_the_definition(smallest, merge, asking, monkeypatch):
    monkeypatch.setattr("detr_fast.inference.panoptic._may_ask", lambda x: asking)
    generator = torch.Generator().manual_seed(7)
    process = PostProcessPanoptic(LABELS, 0.6, smallest, merge)
    counts = set()
    for trial in range(40):
        batch, count = 2, 1 + trial % 9
        labels = torch.randint(0, 5, (batch, count), generator=generator)
        logits = torch.nn.functional.one_hot(labels, 5) * torch.rand(
            (batch, count, 1), generator=generator
        ).mul(4).add(1)
        # Few levels, so that many are equal.
        masks = torch.randint(0, 4, (batch, count, 9, 8), generator=generator).float()
        size = (9, 8)
        found = process({"pred_logits": logits, "pred_masks": masks}, size, [size] * batch)
        for own, own_labels, own_masks, probabilities in zip(
            found, labels, masks, logits.softmax(-1), strict=True
        ):
            scores, likeliest = probabilities.max(-1)
            kept = (scores > 0.6) & (likeliest < NO_OBJECT)
            ids, info = expected_map(
                own_labels[kept].tolist(),
                scores[kept].tolist(),
                own_masks[kept].numpy(),
                smallest,
                merge,
            )
            assert np.array_equal(own.ids, ids)
            assert own.ids.dtype == np.int32
            described = [
                (s["id"], s["category_id"], s["area"], s["score"]) for s in own.segments_info
            ]
            assert described == [
                (i, LABELS.category_id(label), area, score)
                for i, (label, area, score) in enumerate(info, start=1)
            ]
            counts.add(len(info))
    assert counts == {0} if smallest == 1000 else len(counts) > 2


@pytest.mark.cuda
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("smallest", [3, 12])
def test_maps_of_a_gpu_are_those_of_a_cpu(smallest, merge):
    generator = torch.Generator().manual_seed(8)
    outputs = {
        "pred_logits": 4 * torch.randn(3, 20, 5, generator=generator),
        "pred_masks": torch.randint(0, 4, (3, 20, 18, 16), generator=generator).float(),
    }
    process = PostProcessPanoptic(LABELS, 0.5, smallest, merge)
    expected = process(outputs, (18, 16), [(18, 16)] * 3)
    found = process({name: x.cuda() for name, x in outputs.items()}, (18, 16), [(18, 16)] * 3)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert one.names == other.names
        assert [s["area"] for s in one.segments_info] == [s["area"] for s in other.segments_info]


@pytest.mark.parametrize("asking", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_what_is_small_without_its_class_is_removed_too(asking, monkeypatch):
    monkeypatch.setattr("detr_fast.inference.panoptic._may_ask", lambda x: asking)
    masks = rows("110000 000000", "001111 000000", "000000 111111")
    masks[2] += 0.5
    found = panoptic(outputs_of([2, 2, 0], masks), smallest=3, merge_stuff=False)
    assert found.ids.tolist() == [[1] * 6] * 2
    assert [(s["category_id"], s["area"]) for s in found.segments_info] == [(10, 12)]


# The golden map


def golden_outputs():
    """Logits by formula, the same on every machine: two discs, a ring and three backgrounds."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")

    def disc(row, column, radius):
        return radius - ((y - row) ** 2 + (x - column) ** 2).sqrt()

    masks = torch.stack(
        [
            disc(8, 9, 5.6),
            disc(15, 21, 6.3),
            disc(3, 27, 1.2) * 2,  # too small to stay
            (y - 13.5) / 4,  # grass below
            (11.5 - y) / 4,  # sky above
            (x - 27.5) / 2,  # more grass on the right
            disc(12, 16, 9.0) * 3,  # a query of no object
        ]
    )
    return outputs_of([0, 1, 0, 2, 3, 2, NO_OBJECT], masks)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "original"])
def test_golden_map_and_quality(merge):
    golden = json.loads(GOLDEN.read_text())
    found = panoptic(golden_outputs(), target=(30, 40), merge_stuff=merge)
    expected = golden["merged" if merge else "original"]
    assert ["".join(map(str, row)) for row in found.ids.tolist()] == expected["map"]
    info = [
        {name: s[name] for name in ("id", "category_id", "isthing", "area")}
        for s in found.segments_info
    ]
    assert info == expected["segments_info"]

    truth = np.array([[int(digit) for digit in row] for row in golden["truth"]["map"]])
    evaluator = PanopticEvaluator(
        {
            "categories": LABELS.categories,
            "annotations": [{"image_id": 1, "segments_info": golden["truth"]["segments_info"]}],
        },
        lambda image_id: truth,
    )
    evaluator.update({1: (found.ids, found.segments_info)})
    figures = evaluator.summarize()
    for name, value in expected["figures"].items():
        assert figures[name] == pytest.approx(value, abs=PANOPTIC_QUALITY)


# transformers


def test_maps_of_transformers_where_the_definitions_agree():
    """They agree where all scores are equal, masks hardly overlap and none is small.

    Elsewhere transformers differs from the original in that it
    * multiplies mask probabilities by the score before the arg-max, which takes raw logits here;
    * drops a segment that kept less than 0.8 of its own mask, and leaves its pixels without one,
      where here segments of at most 4 pixels go, and their pixels to the next;
    * enlarges probabilities to the original size and decides there, where here the decision is
      taken at the size of the model's input and brought to the original by nearest interpolation;
    * starts at a score of 0.5, and here 0.85;
    * merges no stuff unless told, and lists a merged segment once for each query.
    """
    processing = pytest.importorskip("transformers.models.detr.image_processing_detr")
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    masks = torch.stack(
        [
            torch.where((x < 12) & (y < 10), 4.0, -4.0),
            torch.where((x >= 12) & (y < 10), 4.0, -4.0),
            torch.where((y >= 10) & (x < 20), 4.0, -4.0),
            torch.where((y >= 10) & (x >= 20), 4.0, -4.0),
        ]
    )
    outputs = outputs_of([0, 0, 2, 2], masks)
    found = panoptic(outputs)
    (expected,) = processing.DetrImageProcessor().post_process_panoptic_segmentation(
        SimpleNamespace(logits=outputs["pred_logits"].float(), pred_masks=outputs["pred_masks"]),
        threshold=0.85,
        label_ids_to_fuse={2, 3},
        target_sizes=[(20, 30)],
    )
    assert np.array_equal(found.ids, expected["segmentation"].numpy())
    listed = {s["id"]: LABELS.category_id(s["label_id"]) for s in expected["segments_info"]}
    assert {s["id"]: s["category_id"] for s in found.segments_info} == listed
    assert len(listed) == 3


# Instance masks


def test_instance_masks_as_the_original_makes_them():
    torch.manual_seed(5)
    logits = torch.randn(2, 3, 6, 8)
    canvas, sizes, targets = (24, 31), [(24, 20), (18, 31)], [(37, 50), (18, 31)]
    masks = PostProcessMasks()([logits[0], logits[1, :0]], canvas, sizes, targets)
    # facebookresearch/detr, models/segmentation.py, PostProcessSegm: the same steps at once.
    big = torch.nn.functional.interpolate(logits, canvas, mode="bilinear").sigmoid() > 0.5
    cut = big[0, :, :24, :20].float()[:, None]
    expected = torch.nn.functional.interpolate(cut, (37, 50), mode="nearest")[:, 0].bool()
    assert torch.equal(masks[0], expected)
    assert masks[0].dtype == torch.bool
    assert masks[1].shape == (0, 18, 31)


# Classes


def test_cocos_panoptic_classes():
    labels = COCO_PANOPTIC_LABEL_MAP
    assert len(labels) == 250
    assert len(labels.categories) == 133
    assert sum(entry["isthing"] for entry in labels.categories) == 80
    assert labels.name(1) == "person"
    assert labels.name(187) == "sky-other-merged"
    assert labels.is_thing(90)
    assert not labels.is_thing(92)
    assert LabelMap.from_dict(labels.to_dict()) == labels
    with pytest.raises(ValueError, match="category_id 99 is stuff, but no category has that id"):
        LabelMap((1,), ("a",), frozenset({99}))

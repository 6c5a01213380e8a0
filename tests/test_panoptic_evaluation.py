"""Panoptic quality: cases known by hand, brute force, torchmetrics, and what is refused."""

import math

import numpy as np
import pytest
import torch
from tolerances import PANOPTIC_QUALITY, PANOPTIC_QUALITY_TORCHMETRICS

from detr_fast.data.panoptic_png import PanopticError
from detr_fast.evaluation.panoptic import Counts, PanopticEvaluator, count_matches

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "grass", "isthing": 0},
]


def line(text: str) -> np.ndarray:
    """A map of one row, a digit a pixel."""
    return np.array([[int(digit) for digit in text]])


def seg(id_, category_id, iscrowd=0):
    return {"id": id_, "category_id": category_id, "iscrowd": iscrowd}


def evaluate(truth_ids, truth, ids, segments):
    truth_json = {
        "images": [{"id": 1}],
        "categories": CATEGORIES,
        "annotations": [{"image_id": 1, "segments_info": truth}],
    }
    evaluator = PanopticEvaluator(truth_json, lambda image_id: truth_ids)
    evaluator.update({1: (ids, segments)})
    return evaluator.summarize()


# Cases known by hand

CASES = {
    "perfect": ("1122", [seg(1, 3), seg(2, 9)], "7788", [seg(7, 3), seg(8, 9)],
                {3: Counts(1.0, 1), 9: Counts(1.0, 1)}),
    # 3 of 4 pixels, a union of 5.
    "shifted": ("111100", [seg(1, 3)], "022220", [seg(2, 3)],
                # The pixel in void leaves the union: 3 / (4 + 4 - 3 - 1).
                {3: Counts(3 / 4, 1)}),
    "exactly one half is no match": ("112222", [seg(1, 3), seg(2, 9)], "122222",
                                     [seg(1, 3), seg(2, 9)],
                                     {3: Counts(0.0, 0, 1, 1), 9: Counts(4 / 5, 1)}),
    "void prediction is ignored": ("1100", [seg(1, 3)], "1122", [seg(1, 3), seg(2, 3)],
                                   {3: Counts(1.0, 1)}),
    "half in void is a false positive": ("1122000", [seg(1, 3), seg(2, 9)], "1133330",
                                         [seg(1, 3), seg(3, 5)],
                                         {3: Counts(1.0, 1), 5: Counts(0.0, 0, 1),
                                          9: Counts(0.0, 0, 0, 1)}),
    "crowd of the class is ignored": ("1122", [seg(1, 3), seg(2, 3, 1)], "1145",
                                      [seg(1, 3), seg(4, 3), seg(5, 3)], {3: Counts(1.0, 1)}),
    "crowd of another class is not": ("1122", [seg(1, 3), seg(2, 5, 1)], "1144",
                                      [seg(1, 3), seg(4, 3)], {3: Counts(1.0, 1, 1)}),
    "crowd is never matched": ("2222", [seg(2, 3, 1)], "2222", [seg(2, 3)], {}),
    "crowd missed is no false negative": ("2222", [seg(2, 3, 1)], "0000", [], {}),
    "two crowds of a class": ("2233", [seg(2, 3, 1), seg(3, 3, 1)], "0440", [seg(4, 3)], {}),
    "split": ("1111", [seg(1, 3)], "2223", [seg(2, 3), seg(3, 3)], {3: Counts(3 / 4, 1, 1)}),
    "merged": ("111222", [seg(1, 3), seg(2, 3)], "444444", [seg(4, 3)],
               {3: Counts(0.0, 0, 1, 2)}),
    "confused": ("1111", [seg(1, 3)], "1111", [seg(1, 5)],
                 {3: Counts(0.0, 0, 0, 1), 5: Counts(0.0, 0, 1, 0)}),
    "nothing predicted": ("1122", [seg(1, 3), seg(2, 9)], "0000", [],
                          {3: Counts(fn=1), 9: Counts(fn=1)}),
    "nothing true": ("0000", [], "1111", [seg(1, 3)], {}),
    "both empty": ("0000", [], "0000", [], {}),
    "truth without pixels": ("1111", [seg(1, 3), seg(2, 5)], "1111", [seg(1, 3)],
                             {3: Counts(1.0, 1), 5: Counts(fn=1)}),
    "id 0 listed by the prediction": ("1111", [seg(1, 3)], "0000", [seg(0, 3)],
                                      {3: Counts(1.0, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_counts_known_by_hand(case):
    truth_ids, truth, ids, segments, expected = CASES[case]
    assert count_matches(line(truth_ids), truth, line(ids), segments) == expected


def test_figures_known_by_hand():
    figures = evaluate(
        line("1111222299"),
        [seg(1, 3), seg(2, 3), seg(9, 9)],
        line("1110444999"),
        [seg(1, 3), seg(4, 5), seg(9, 9)],
    )
    # cat: one of two found at 3/4; dog: one false; grass: 2/3 found.
    cat, dog, grass = 0.75 / 1.5, 0.0, 2 / 3
    assert figures["PQ"] == pytest.approx((cat + dog + grass) / 3, abs=PANOPTIC_QUALITY)
    assert figures["PQ_th"] == pytest.approx((cat + dog) / 2, abs=PANOPTIC_QUALITY)
    assert figures["PQ_st"] == pytest.approx(grass, abs=PANOPTIC_QUALITY)
    assert figures["SQ_th"] == pytest.approx(0.75 / 2, abs=PANOPTIC_QUALITY)
    assert figures["RQ_th"] == pytest.approx((1 / 1.5) / 2, abs=PANOPTIC_QUALITY)
    assert [(row["name"], row["TP"], row["FP"], row["FN"]) for row in figures["per_class"]] == [
        ("cat", 1, 0, 1),
        ("dog", 0, 1, 0),
        ("grass", 1, 0, 0),
    ]
    assert (figures["classes"], figures["images"]) == (3, 1)


def test_classes_that_do_not_occur_are_left_out_of_means():
    figures = evaluate(line("11"), [seg(1, 3)], line("11"), [seg(1, 3)])
    assert figures["PQ"] == figures["PQ_th"] == 1
    assert math.isnan(figures["PQ_st"])
    assert math.isnan(figures["per_class"][1]["PQ"])
    assert figures["classes"] == 1


# Random maps


@pytest.mark.parametrize("seed", range(20))
def test_random_maps_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    truth_ids, truth = random_map(rng, crowds=True)
    ids, segments = similar_map(rng, truth_ids, truth)
    assert count_matches(truth_ids, truth, ids, segments) == brute_force(
        truth_ids, truth, ids, segments
    )


def random_map(rng, crowds: bool, side=14, segments=7):
    blocks = rng.integers(0, segments + 1, (side // 2, side // 2)).repeat(2, 0).repeat(2, 1)
    info = [
        seg(int(i), int(rng.choice([3, 5, 9])), int(crowds and rng.random() < 0.3))
        for i in np.unique(blocks)
        if i
    ]
    return blocks, info


def similar_map(rng, truth_ids, truth):
    """The same map with noise, ids shuffled and some classes changed."""
    ids = np.where(rng.random(truth_ids.shape) < 0.25, rng.integers(0, 8, truth_ids.shape), 0)
    ids = np.where(ids > 0, ids, truth_ids)
    classes = {s["id"]: s["category_id"] for s in truth}
    info = [
        {
            "id": int(i) * 1000,
            "category_id": classes.get(i, 5) if rng.random() < 0.8 else int(rng.choice([3, 5, 9])),
        }
        for i in np.unique(ids)
        if i
    ]
    return ids * 1000, info


def brute_force(truth_ids, truth, ids, segments):
    """Kirillov et al., section 4.1, pixel set by pixel set."""
    void = truth_ids == 0
    counts, matched = {}, set()

    def add(category, **more):
        counts[category] = counts.get(category, Counts()).plus(**more)

    for t in truth:
        if t["iscrowd"]:
            continue
        for p in segments:
            a, b = truth_ids == t["id"], ids == p["id"]
            union = (a | (b & ~void)).sum()
            iou = (a & b).sum() / union if union else 0
            if t["category_id"] == p["category_id"] and iou > 0.5:
                add(t["category_id"], iou=float(iou), tp=1)
                matched |= {("t", t["id"]), ("p", p["id"])}
        if ("t", t["id"]) not in matched:
            add(t["category_id"], fn=1)
    for p in segments:
        if ("p", p["id"]) in matched:
            continue
        b = ids == p["id"]
        ignored = void.copy()
        for t in truth:
            if t["iscrowd"] and t["category_id"] == p["category_id"]:
                ignored |= truth_ids == t["id"]
        if (b & ignored).sum() <= 0.5 * b.sum():
            add(p["category_id"], fp=1)
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_random_maps_equal_torchmetrics(seed):
    detection = pytest.importorskip("torchmetrics.detection", reason="torchmetrics is missing")
    rng = np.random.default_rng(100 + seed)
    truth_ids, truth = random_map(rng, crowds=False)
    ids, segments = similar_map(rng, truth_ids, truth)
    # There every pixel has a class and a number; stuff is one segment of its class.
    merge(truth_ids, truth)
    merge(ids, segments)
    metric = detection.PanopticQuality(
        things={3, 5}, stuffs={9}, allow_unknown_preds_category=True, return_sq_and_rq=True
    )
    pair = [as_colours(ids, segments, void=(3, -1)), as_colours(truth_ids, truth, void=(77, 0))]
    # A pixel that nobody predicted has to have a class there: it gets a void one.
    pair[0][0][torch.from_numpy(ids == 0)] = torch.tensor([77, 0])
    expected = metric(*pair)
    figures = evaluate(truth_ids, truth, ids, segments)
    for name, value in zip(("PQ", "SQ", "RQ"), expected.tolist(), strict=True):
        assert figures[name] == pytest.approx(value, abs=PANOPTIC_QUALITY_TORCHMETRICS)


def merge(ids, segments):
    """All stuff of a class in one segment."""
    stuff = [s for s in segments if s["category_id"] == 9]
    for segment in stuff[1:]:
        ids[ids == segment["id"]] = stuff[0]["id"]
        segments.remove(segment)


def as_colours(ids, segments, void):
    colours = torch.tensor(void).repeat(*ids.shape, 1)
    for s in segments:
        number = s["id"] if s["category_id"] != 9 else 0
        colours[torch.from_numpy(ids == s["id"])] = torch.tensor([s["category_id"], number])
    return colours[None]


# What is refused


def test_unknown_category_is_refused():
    with pytest.raises(PanopticError, match="segment 1 of image 1 in the prediction has category"):
        evaluate(line("11"), [seg(1, 3)], line("11"), [seg(1, 4)])
    with pytest.raises(PanopticError, match="in the ground truth has category_id 4"):
        evaluate(line("11"), [seg(1, 4)], line("11"), [seg(1, 3)])


@pytest.mark.parametrize(
    ("ids", "segments", "message"),
    [
        ("11", [seg(1, 3), seg(2, 5)], "image 1: predicted segment 2 has no pixels"),
        ("12", [seg(1, 3)], "image 1: the map has segment 2, which segments_info does not list"),
        ("11", [seg(1, 3), seg(1, 5)], "image 1: segment 1 is listed twice"),
        ("111", [seg(1, 3)], r"has shape \(1, 3\), the true one \(1, 2\)"),
    ],
)
def test_maps_that_contradict_themselves_are_refused(ids, segments, message):
    with pytest.raises(PanopticError, match=message):
        evaluate(line("11"), [seg(1, 3)], line(ids), segments)


def test_image_without_ground_truth_is_refused():
    evaluator = PanopticEvaluator({"categories": CATEGORIES, "annotations": []}, lambda i: None)
    with pytest.raises(PanopticError, match="predicted for image 4, which has no panoptic annot"):
        evaluator.update({4: (line("11"), [seg(1, 3)])})
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluator.summarize()

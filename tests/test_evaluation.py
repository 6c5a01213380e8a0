"""COCO figures against hand-made cases and pycocotools itself; loss statistics; processes."""

import copy
import json
import math
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from evaluation_cases import (
    CATEGORIES,
    DOG,
    LABELS,
    Copying,
    Counting,
    copying_case,
    detections,
    evaluate_on_rank,
    ground_truth,
)
from tolerances import COCO_AP
from torch import nn

from detr_fast import build_model
from detr_fast.data.build import build_loader
from detr_fast.data.label_map import COCO_LABEL_MAP, LabelMap
from detr_fast.data.shapes import ShapesDataset
from detr_fast.data.transforms import val_transform
from detr_fast.evaluation.coco import STAT_NAMES, CocoEvaluator
from detr_fast.evaluation.evaluate import evaluate
from detr_fast.evaluation.report import render, to_json
from detr_fast.training.criterion import build_criterion
from detr_fast.training.recipe import Recipe

ONE = pytest.approx(1, abs=COCO_AP)


def summarize(truth, predictions, label_map=LABELS):
    evaluator = CocoEvaluator(truth, label_map)
    evaluator.update(predictions)
    return evaluator.summarize()


def perfect(truth, label_map, shift=0.0):
    """The annotations themselves as detections, moved right by a share of their width."""
    predictions = {image["id"]: ([], [], []) for image in truth["images"]}
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        boxes, labels, scores = predictions[annotation["image_id"]]
        boxes.append([x + shift * w, y, x + shift * w + w, y + h])
        labels.append(label_map.index(annotation["category_id"]))
        scores.append(0.9)
    return {
        image_id: {
            "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores),
        }
        for image_id, (boxes, labels, scores) in predictions.items()
    }


# Hand-made cases


def test_perfect_detection_has_ap_one():
    stats = summarize(ground_truth([(10, 10, 40, 40)]), {1: detections([[10, 10, 50, 50]])})
    assert stats["AP"] == ONE
    assert stats["AP50"] == ONE
    assert stats["AR100"] == 1
    assert stats["images"] == 1
    assert set(STAT_NAMES) < set(stats)


def test_iou_decides_at_which_thresholds_a_box_counts():
    # 36 of 40 columns shared: IoU 36/44 = 0.818, above seven of the ten thresholds.
    stats = summarize(ground_truth([(10, 10, 40, 40)]), {1: detections([[14, 10, 54, 50]])})
    assert stats["AP50"] == ONE
    assert stats["AP75"] == ONE
    assert stats["AP"] == pytest.approx(0.7, abs=COCO_AP)


def test_false_positive_above_the_true_one_halves_precision():
    boxes = [[60, 60, 90, 90], [10, 10, 50, 50]]
    truth = ground_truth([(10, 10, 40, 40)])
    assert summarize(truth, {1: detections(boxes, scores=[0.9, 0.8])})["AP"] == pytest.approx(
        0.5, abs=COCO_AP
    )
    assert summarize(truth, {1: detections(boxes, scores=[0.8, 0.9])})["AP"] == ONE


def test_wrong_class_does_not_count():
    truth = ground_truth([(10, 10, 40, 40)])
    assert summarize(truth, {1: detections([[10, 10, 50, 50]], labels=[DOG])})["AP"] == 0


def test_empty_predictions_have_ap_zero():
    stats = summarize(ground_truth([(10, 10, 40, 40)]), {1: detections([])})
    assert stats["AP"] == stats["AR100"] == 0


def test_class_absent_from_the_images_is_not_a_number():
    truth = ground_truth([(10, 10, 40, 40), (0, 0, 8, 8)], categories=[7, 3])
    boxes = detections([[10, 10, 50, 50]])
    stats = summarize(truth, {1: boxes})
    rows = {row["name"]: row for row in stats["per_class"]}
    assert [row["category_id"] for row in stats["per_class"]] == [3, 7, 40]
    assert rows["cat"]["AP"] == ONE
    assert rows["dog"]["AP"] == 0
    assert math.isnan(rows["emu"]["AP"])
    assert rows["emu"]["instances"] == 0
    assert stats["AP"] == pytest.approx(0.5, abs=COCO_AP), (
        "a class without instances takes no part in the mean"
    )
    assert math.isnan(stats["APl"])
    assert stats["coco_eval_bbox"][STAT_NAMES.index("APl")] == -1


def test_nothing_to_detect_at_all_is_not_a_number():
    stats = summarize(ground_truth([]), {1: detections([[0, 0, 5, 5]])})
    assert math.isnan(stats["AP"])


def test_only_images_seen_count():
    truth = ground_truth([(10, 10, 40, 40), (10, 10, 40, 40)], image_ids=[1, 2])
    evaluator = CocoEvaluator(truth, LABELS)
    evaluator.update({1: detections([[10, 10, 50, 50]])})
    assert evaluator.summarize()["AP"] == ONE
    evaluator.update({2: detections([])})
    stats = evaluator.summarize()
    assert stats["AR100"] == 0.5
    assert stats["images"] == 2


def test_crowds_are_neither_missed_nor_wrong():
    truth = ground_truth([(10, 10, 40, 40), (50, 50, 50, 50)])
    truth["annotations"][1]["iscrowd"] = 1
    found = detections([[10, 10, 50, 50], [60, 60, 80, 80]])
    stats = summarize(truth, {1: found})
    assert stats["AP"] == ONE
    assert stats["per_class"][1]["instances"] == 1


def test_annotation_id_zero_can_be_found():
    truth = ground_truth([(10, 10, 40, 40)])
    truth["annotations"][0]["id"] = 0
    assert summarize(truth, {1: detections([[10, 10, 50, 50]])})["AP"] == ONE


def test_nonfinite_detections_are_left_out_and_counted():
    bad = detections([[10, 10, 50, 50], [10, math.nan, 50, 50], [0, 0, 9, 9]])
    bad["scores"][2] = math.nan
    stats = summarize(ground_truth([(10, 10, 40, 40)]), {1: bad})
    assert stats["AP"] == ONE
    assert stats["nonfinite_detections"] == 2


def test_identity_and_contiguous_label_maps_give_the_same():
    truth = ground_truth([(10, 10, 40, 40), (0, 0, 30, 30)], categories=[7, 40])
    results = []
    for label_map in (LabelMap.contiguous(CATEGORIES), LabelMap.identity(CATEGORIES)):
        results.append(summarize(truth, perfect(truth, label_map), label_map)["AP"])
    assert results == [ONE, ONE]


def test_ground_truth_is_not_modified():
    truth = ground_truth([(10, 10, 40, 40)])
    before = copy.deepcopy(truth)
    summarize(truth, {1: detections([[10, 10, 50, 50]])})
    assert truth == before


def test_nothing_is_printed(capsys):
    summarize(ground_truth([(10, 10, 40, 40)]), {1: detections([[10, 10, 50, 50]])})
    assert capsys.readouterr() == ("", "")


# Errors


def test_unknown_image_is_an_error():
    evaluator = CocoEvaluator(ground_truth([]), LABELS)
    with pytest.raises(ValueError, match="image 99, which is not among the 1 images"):
        evaluator.update({99: detections([])})


def test_label_outside_the_map_is_an_error():
    evaluator = CocoEvaluator(ground_truth([]), LABELS)
    with pytest.raises(ValueError, match="image 1 contain label 3; the label map has indices 0"):
        evaluator.update({1: detections([[0, 0, 1, 1]], labels=[3])})


def test_unequal_lengths_are_an_error():
    evaluator = CocoEvaluator(ground_truth([]), LABELS)
    with pytest.raises(ValueError, match="1 scores, 1 labels and 2 boxes"):
        evaluator.update({1: {**detections([[0, 0, 1, 1]]), "boxes": torch.zeros(2, 4)}})


def test_annotation_of_an_undefined_category_is_an_error():
    with pytest.raises(ValueError, match="has category_id 8, which is not among"):
        CocoEvaluator(ground_truth([(0, 0, 1, 1)], categories=[8]), LABELS)


def test_no_image_at_all_is_an_error():
    with pytest.raises(ValueError, match="no image was evaluated"):
        CocoEvaluator(ground_truth([]), LABELS).summarize()


# Against pycocotools on real annotations


@pytest.fixture(scope="module")
def coco_val(shared_data):
    return json.loads((shared_data / "coco_tiny/annotations/instances_val2017.json").read_text())


def test_real_annotations_found_perfectly_have_ap_one(coco_val):
    stats = summarize(coco_val, perfect(coco_val, COCO_LABEL_MAP), COCO_LABEL_MAP)
    assert stats["AP"] == ONE
    assert stats["images"] == 80
    # A few categories are in no image as anything but a crowd, if at all.
    assert all(row["AP"] == ONE for row in stats["per_class"] if row["instances"])


def test_real_annotations_against_pycocotools_itself(coco_val, tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    generator = np.random.default_rng(0)
    predictions = perfect(coco_val, COCO_LABEL_MAP)
    results = []
    for image_id, prediction in predictions.items():
        noise = torch.from_numpy(generator.normal(0, 4, prediction["boxes"].shape))
        prediction["boxes"] += noise
        prediction["scores"] = torch.from_numpy(generator.random(len(noise)))
        prediction["labels"][::7] = COCO_LABEL_MAP.index(1)
        columns = (prediction[name].tolist() for name in ("boxes", "labels", "scores"))
        for box, label, score in zip(*columns, strict=True):
            x0, y0, x1, y1 = box
            results.append(
                {
                    "image_id": image_id,
                    "category_id": COCO_LABEL_MAP.category_id(label),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
            )
    truth_file = tmp_path / "truth.json"
    truth_file.write_text(json.dumps({**coco_val, "info": {}}))
    truth = COCO(str(truth_file))
    expected = COCOeval(truth, truth.loadRes(results), "bbox")
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    stats = summarize(coco_val, predictions, COCO_LABEL_MAP)
    assert stats["coco_eval_bbox"] == expected.stats.tolist()
    assert 0.1 < stats["AP"] < 0.9


def test_real_annotations_shifted_by_a_quarter_of_their_width(coco_val):
    """IoU (1 - 1/4) / (1 + 1/4) = 0.6: found at thresholds 0.5, 0.55 and 0.6, not above.

    One object a class and image, so that no shifted box can match a neighbour.
    """
    alone = {}
    for annotation in coco_val["annotations"]:
        if not annotation["iscrowd"]:
            alone.setdefault((annotation["image_id"], annotation["category_id"]), annotation)
    truth = {**coco_val, "annotations": list(alone.values())}
    stats = summarize(truth, perfect(truth, COCO_LABEL_MAP, shift=0.249), COCO_LABEL_MAP)
    assert stats["AP"] == pytest.approx(0.3, abs=COCO_AP)
    assert stats["AP50"] == ONE
    assert stats["AP75"] == 0


# evaluate


def test_evaluate_gives_ap_and_the_losses_of_the_original_log():
    truth, batches = copying_case()
    model = Copying()
    stats = evaluate(model, batches, CocoEvaluator(truth, LABELS), Counting())
    assert stats["AP"] == ONE
    assert stats["losses"] == pytest.approx(
        {
            "loss": 2.5 * (1 + 0.5 + 0.05),
            "loss_ce": 2.5,
            "loss_bbox": 1.25,
            "loss_bbox_0": 0.125,
            "class_error": 40,
            "loss_ce_unscaled": 2.5,
            "loss_bbox_unscaled": 0.25,
            "loss_bbox_0_unscaled": 0.025,
            "class_error_unscaled": 40,
            "cardinality_error_unscaled": 5,
        }
    )


def test_evaluate_normalises_batches_of_bytes():
    model = build_model("detr_tiny", pretrained=True)
    figures = []
    for normalised in (True, False):
        transform = val_transform(40, 60, normalised=normalised)
        shapes = ShapesDataset(6, side=(40, 64), transform=transform)
        loader = build_loader(shapes, 3)
        assert next(iter(loader))[0].tensors.is_floating_point() == normalised
        evaluator = CocoEvaluator(shapes.ground_truth(), shapes.label_map)
        criterion = build_criterion(model, Recipe())
        figures.append(to_json(evaluate(model, loader, evaluator, criterion)))
    assert figures[0] == figures[1]


def test_evaluate_without_criterion_has_no_losses():
    truth, batches = copying_case()
    assert evaluate(Copying(), batches, CocoEvaluator(truth, LABELS))["losses"] == {}


def test_evaluate_restores_the_mode_of_every_module():
    truth, batches = copying_case()
    model = Copying()
    model.frozen = nn.Dropout().eval()
    evaluate(model, batches, CocoEvaluator(truth, LABELS))
    assert model.seen_training == [False] * 4
    assert model.training
    assert not model.frozen.training


def test_evaluate_under_autocast_computes_boxes_in_float32():
    class Halving(Copying):
        def forward(self, batch):
            assert torch.is_autocast_enabled("cpu")
            return {k: v.bfloat16() for k, v in super().forward(batch).items()}

    truth, batches = copying_case()
    evaluator = CocoEvaluator(truth, LABELS)
    stats = evaluate(Halving(), batches, evaluator, Counting(), amp=torch.bfloat16)
    assert stats["AP50"] == ONE


def test_all_class_errors_not_available_stay_so():
    truth, batches = copying_case(1)
    stats = evaluate(Copying(), batches, CocoEvaluator(truth, LABELS), Counting())
    assert math.isnan(stats["losses"]["class_error"])
    assert stats["losses"]["loss_ce"] == 1


def test_empty_loader_is_an_error():
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluate(Copying(), [], CocoEvaluator(ground_truth([]), LABELS))


@pytest.mark.parametrize(
    ("dilation", "batch_size", "noted"), [(True, 3, True), (True, 1, False), (False, 3, False)]
)
def test_dc5_note_is_printed_once(dilation, batch_size, noted, capsys):
    class Loader(list):
        pass

    truth, batches = copying_case()
    loader = Loader(batches)
    loader.batch_size = batch_size
    for _ in range(2):
        evaluate(Copying({"dilation": dilation}), loader, CocoEvaluator(truth, LABELS))
    said = capsys.readouterr().err
    assert said.count("AP depends on the batch size") == int(noted)


# Report


def test_report_shows_every_figure_and_says_what_is_not_available():
    truth, batches = copying_case()
    text = render(evaluate(Copying(), batches, CocoEvaluator(truth, LABELS), Counting()))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == "AP 1.000 AP50 1.000 AP75 1.000 APs n/a APm 1.000 APl n/a".split()  # noqa: SIM905
    assert ["cat", "7", "4", "1.000", "1.000", "1.000"] in lines
    assert ["emu", "40", "0", "n/a", "n/a", "n/a"] in lines
    assert ["loss_bbox", "1.2500", "0.2500"] in lines
    assert ["cardinality_error", "5.0000"] in lines
    assert text.index("loss_bbox_0") > text.index("cardinality_error")


def test_report_without_losses_and_with_nonfinite_detections():
    bad = detections([[10, math.nan, 50, 50]])
    text = render(summarize(ground_truth([(10, 10, 40, 40)]), {1: bad}))
    assert "averages" not in text
    assert "1 detections were NaN or infinite" in text


def test_json_has_null_for_what_is_not_available():
    truth, batches = copying_case(1)
    figures = evaluate(Copying(), batches, CocoEvaluator(truth, LABELS), Counting())
    content = json.loads(to_json(figures), parse_constant=pytest.fail)
    assert content["APs"] is None
    assert content["losses"]["class_error"] is None
    assert content["AP"] == ONE


# Processes


def test_two_processes_give_the_figures_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(evaluate_on_rank, args=(port, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert str(first) == str(second)
    assert first["images"] == 5
    truth, batches = copying_case(5)
    alone = evaluate(Copying(), batches, CocoEvaluator(truth, LABELS))
    assert first["coco_eval_bbox"] == alone["coco_eval_bbox"]
    assert first["losses"]["loss_ce"] == 2


def test_the_lowest_rank_keeps_an_image_that_several_hold(monkeypatch):
    truth = ground_truth([(10, 10, 40, 40)])
    right, wrong = CocoEvaluator(truth, LABELS), CocoEvaluator(truth, LABELS)
    right.update({1: detections([[10, 10, 50, 50]])})
    wrong.update({1: detections([[60, 60, 90, 90]])})

    def all_gather_object(gathered, _):
        gathered[:] = [(e._detections, e._nonfinite) for e in (right, wrong)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    wrong.synchronize()
    assert wrong.summarize()["AP"] == ONE

"""Masks from the command line: `train`, `eval` and `predict`, on generated data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast import Detector
from detr_fast.cli.main import main
from detr_fast.data.label_map import LabelMap
from detr_fast.data.panoptic_png import read_panoptic_png
from detr_fast.data.shapes import SHAPES_PANOPTIC_LABEL_MAP, write_shapes
from detr_fast.data.transforms import val_transform
from detr_fast.models.checkpoint import load_checkpoint
from detr_fast.models.zoo import build_model
from detr_fast.training.run_folder import RunFolder

SMALL = ["--hidden_dim=64", "--enc_layers=1", "--dec_layers=2", "--dim_feedforward=16"]
SMALL += ["--num_queries=6", "--device=cpu", "--batch_size=2", "--epochs=1"]
SHAPES = [*SMALL, "--train_images=4", "--val_images=2"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(RunFolder, "plot", lambda self: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of one epoch on panoptic shapes."""
    folder = tmp_path_factory.mktemp("panoptic") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "plot", lambda self: None)
        preset = ["--preset=shapes_panoptic", f"--output_dir={folder}"]
        assert main(["train", *SHAPES, *preset]) == 0
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), train=4, val=2, stuff=True)


def record_of(folder):
    return json.loads((folder / "log.txt").read_text().splitlines()[-1])


# Training


def test_preset_trains_masks_and_logs_the_originals_names(trained):
    record = record_of(trained)
    for name in ("train_loss_mask", "train_loss_dice", "test_loss_mask"):
        assert np.isfinite(record[name])
    assert len(record["test_coco_eval_bbox"]) == len(record["test_coco_eval_masks"]) == 12
    assert set(record["test_PQ_all"]) == set(record["test_PQ_st"]) == {"pq", "sq", "rq"}
    columns = (trained / "results.csv").read_text().splitlines()[0].split(",")
    assert {"test_AP", "test_mask_AP50", "test_pq_all", "test_rq_st"} <= set(columns)
    checkpoint = load_checkpoint(trained / "weights" / "last.pth")
    assert checkpoint.config["name"] == "detr_tiny_panoptic"
    assert LabelMap.from_dict(checkpoint.label_map) == SHAPES_PANOPTIC_LABEL_MAP
    assert checkpoint.extra["args"]["masks"] is True
    assert checkpoint.extra["args"]["dataset_file"] == "shapes_panoptic"


def test_masks_turn_the_detector_into_the_panoptic_model(tmp_path):
    arguments = ["--preset=shapes", "--masks", "--dataset_file=shapes"]
    assert main(["train", *SHAPES, *arguments, f"--output_dir={tmp_path / 'run'}"]) == 0
    record = record_of(tmp_path / "run")
    assert "test_coco_eval_masks" in record
    assert "test_PQ_all" not in record
    checkpoint = load_checkpoint(tmp_path / "run" / "weights" / "last.pth")
    assert checkpoint.config["name"] == "detr_tiny_panoptic"
    assert checkpoint.config["num_classes"] == 6


def test_resumed_training_goes_on_with_masks(trained, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(trained, tmp_path / "run")
    assert main(["train", f"--resume={folder / 'weights' / 'last.pth'}", "--epochs=2"]) == 0
    assert len((folder / "log.txt").read_text().splitlines()) == 2
    assert "test_PQ_all" in record_of(folder)


def test_coco_panoptic_from_a_detectors_weights(stored, tmp_path):
    detector = tmp_path / "detector.pth"
    torch.manual_seed(0)
    options = {"hidden_dim": 64, "dim_feedforward": 16, "num_queries": 6, "num_classes": 9}
    model = build_model("detr_tiny", **options)
    torch.save({"model": model.state_dict(), "config": model.config}, detector)
    common = ["--dataset_file=coco_panoptic", f"--coco_path={stored}", "--preset=shapes"]
    common += ["--device=cpu", "--batch_size=2", "--epochs=1", "--no_check"]

    frozen = tmp_path / "frozen"
    assert main(["train", *common, f"--frozen_weights={detector}", f"--output_dir={frozen}"]) == 0
    state = load_checkpoint(frozen / "weights" / "last.pth").model
    for name, value in model.state_dict().items():
        assert torch.equal(state[f"detr.{name}"], value), name
    assert "test_PQ_th" in record_of(frozen)

    joint = tmp_path / "joint"
    assert main(["train", *common, f"--weights={detector}", f"--output_dir={joint}"]) == 0
    state = load_checkpoint(joint / "weights" / "last.pth").model
    assert not torch.equal(state["detr.class_embed.weight"], model.class_embed.weight)


def test_frozen_detector_of_other_classes_is_refused(tmp_path, capsys):
    detector = tmp_path / "detector.pth"
    model = build_model("detr_tiny")
    torch.save({"model": model.state_dict(), "config": model.config}, detector)
    assert main(["train", *SHAPES, f"--frozen_weights={detector}"]) == 1
    assert "has 6 classes, the data set 9" in capsys.readouterr().err


def test_model_without_a_panoptic_partner_is_named(capsys):
    assert main(["train", *SHAPES, "--model=detr_resnet101_dc5", "--masks"]) == 1
    assert "no panoptic model of detr_resnet101_dc5; known:" in capsys.readouterr().err


# Evaluation


def test_eval_prints_masks_and_panoptic_quality(trained, stored, tmp_path, capsys):
    weights = f"--weights={trained / 'weights' / 'last.pth'}"
    figures = tmp_path / "figures.json"
    arguments = ["--dataset_file=coco_panoptic", f"--coco_path={stored}", f"--output={figures}"]
    assert main(["eval", weights, "--device=cpu", *arguments]) == 0
    out = capsys.readouterr().out
    assert "masks:" in out
    assert "stripes" in out
    content = json.loads(figures.read_text())
    assert content["panoptic"]["images"] == content["segm"]["images"] == 2
    assert [row["name"] for row in content["panoptic"]["per_class"]][-3:] == [
        "plain", "stripes", "checks",
    ]  # fmt: skip
    # Without a data set it takes generated ones with stuff.
    assert main(["eval", weights, "--device=cpu", "--max_images=2"]) == 0
    assert "panoptic" in capsys.readouterr().out


# Prediction


@pytest.fixture
def certain(trained, tmp_path):
    """The trained weights, every query of which is sure of a circle."""
    content = torch.load(trained / "weights" / "last.pth", weights_only=True)
    state = content["model"]
    state["detr.class_embed.weight"].zero_()
    state["detr.class_embed.bias"].zero_()[0] = 6.0
    path = tmp_path / "certain.pth"
    torch.save({**content, "model": state}, path)
    return path


def test_predict_writes_maps_that_can_be_read_again(certain, stored, tmp_path):
    output = tmp_path / "out"
    images = stored / "val2017"
    arguments = [f"--weights={certain}", "--panoptic", "--device=cpu", f"--output={output}"]
    assert main(["predict", str(images), *arguments]) == 0
    content = json.loads((output / "panoptic.json").read_text())
    assert len(content["images"]) == len(content["annotations"]) == 2
    assert {c["name"]: c["isthing"] for c in content["categories"]}["stripes"] == 0
    for annotation in content["annotations"]:
        ids = [s["id"] for s in annotation["segments_info"]]
        found = read_panoptic_png(output / "panoptic" / annotation["file_name"], ids, (64, 64))
        areas = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert areas == {i: int((found == i).sum()) for i in ids}
        assert all(s["category_id"] == 1 for s in annotation["segments_info"])
    pictures = sorted(output.glob("*.png"))
    assert len(pictures) == 2
    assert Image.open(pictures[0]).width >= 384


def test_predict_of_a_detector_has_no_panoptic_map(stored, tmp_path, capsys):
    arguments = ["--model=detr_tiny", "--panoptic", "--device=cpu", f"--output={tmp_path}"]
    assert main(["predict", str(stored / "val2017"), *arguments]) == 1
    assert "detr_tiny has no masks" in capsys.readouterr().err


def test_results_have_masks_and_a_panoptic_map(certain, stored):
    detector = Detector(str(certain), device="cpu")
    paths = sorted((stored / "val2017").iterdir())
    several = detector.predict(paths, threshold=0.5)
    found = several[0]
    assert found.masks.shape == (6, 64, 64)
    assert found.masks.dtype == bool
    assert found.panoptic.ids.shape == (64, 64)
    assert set(found.panoptic.names) == {"circle"}
    assert found[:2].masks.shape == (2, 64, 64)
    assert found[:2].panoptic is found.panoptic
    assert found.to_coco(7)[0]["segmentation"]["size"] == [64, 64]
    # The masks are those of the queries that were detected, in the order of the detections.
    transform = val_transform(detector.preprocess.short_side, detector.preprocess.max_size)
    full = detector.model([transform(found.image())])
    order = (
        full["pred_logits"][0].softmax(-1)[:, :-1].amax(-1).argsort(descending=True, stable=True)
    )
    big = torch.nn.functional.interpolate(full["pred_masks"][:, order], (64, 64), mode="bilinear")
    assert np.array_equal(found.masks, (big[0].sigmoid() > 0.5).numpy())
    assert found.plot().size == found.plot_panoptic().size
    assert detector.attention(paths[0]).weights.shape == (6, 8, 8)


def test_results_of_a_detector_have_none():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    found = Detector("detr_tiny", device="cpu").predict(image)
    assert found.masks is None
    assert found.panoptic is None
    assert "segmentation" not in str(found.to_coco(1))
    with pytest.raises(ValueError, match="no panoptic map; use a model with masks"):
        found.plot_panoptic()

"""`detr-fast eval` and `detr-fast predict`, called as a user calls them, with a small model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import COCO_AP

from detr_fast.cli.main import main
from detr_fast.data.label_map import LabelMap
from detr_fast.data.shapes import SHAPES_LABEL_MAP, ShapesDataset, write_shapes
from detr_fast.models.zoo import build_model

NATIVE = {"short_side": None, "max_size": None}


def write_checkpoint(path, classes, **content):
    torch.manual_seed(0)
    model = build_model("detr_tiny", num_classes=len(classes), enc_layers=1, dec_layers=2)
    content = {
        "model": model.state_dict(),
        "config": model.config,
        "label_map": classes.to_dict(),
        "preprocess": NATIVE,
        **content,
    }
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "shapes.pth", SHAPES_LABEL_MAP)


@pytest.fixture(scope="module")
def coco_path(tmp_path_factory):
    return str(write_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=3))


# eval


def test_eval_prints_tables_and_writes_json(weights, tmp_path, capsys):
    output = tmp_path / "new" / "figures.json"
    arguments = ["--weights", weights, "--max_images", "4", "--device", "cpu"]
    assert main(["eval", *arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "on 4 images of generated shapes (val)" in printed
    for word in ("AP75", "AR100", "circle", "cardinality_error", "loss_giou_0", "class_error"):
        assert word in printed
    figures = json.loads(output.read_text())
    assert figures["images"] == 4
    assert len(figures["per_class"]) == 6
    assert figures["losses"]["loss"] > 0


def test_eval_of_a_data_set_gives_what_its_generator_gives(weights, coco_path, tmp_path):
    written, generated = tmp_path / "a.json", tmp_path / "b.json"
    common = ["--resume", weights, "--device", "cpu"]
    assert main(["eval", *common, "--coco_path", coco_path, "--output", str(written)]) == 0
    assert main(["eval", *common, "--max_images", "3", "--output", str(generated)]) == 0
    first, second = (json.loads(path.read_text()) for path in (written, generated))
    assert first["coco_eval_bbox"] == pytest.approx(second["coco_eval_bbox"], abs=COCO_AP)
    assert first["losses"] == pytest.approx(second["losses"])


def test_eval_with_the_costs_of_the_checkpoint(weights, tmp_path):
    heavier = write_checkpoint(
        tmp_path / "heavy.pth", SHAPES_LABEL_MAP, args={"bbox_loss_coef": 50.0, "lr": 1e-3}
    )
    losses = []
    for path in (weights, heavier):
        output = tmp_path / "figures.json"
        main(["eval", "--weights", path, "--max_images", "1", "--output", str(output)])
        losses.append(json.loads(output.read_text())["losses"])
    light, heavy = losses
    ratio = heavy["loss_bbox"] / heavy["loss_bbox_unscaled"]
    assert ratio == pytest.approx(50)
    assert light["loss_bbox"] / light["loss_bbox_unscaled"] == pytest.approx(5)


def test_eval_of_real_images(shared_data, tmp_path, capsys):
    from detr_fast.data.label_map import COCO_LABEL_MAP

    path = write_checkpoint(
        tmp_path / "coco.pth",
        COCO_LABEL_MAP,
        label_map=None,
        preprocess={"short_side": 64, "max_size": 100},
    )
    folder = str(shared_data / "coco_tiny")
    assert main(["eval", "--weights", path, "--coco_path", folder, "--max_images", "4"]) == 0
    printed = capsys.readouterr().out
    assert "on 4 images" in printed
    assert "toothbrush" in printed


def test_eval_says_where_names_of_categories_differ(coco_path, tmp_path, capsys):
    names = ("disc", *SHAPES_LABEL_MAP.names[1:])
    path = write_checkpoint(tmp_path / "a.pth", LabelMap(SHAPES_LABEL_MAP.ids, names))
    assert main(["eval", "--weights", path, "--coco_path", coco_path, "--max_images", "1"]) == 0
    said = capsys.readouterr().err
    assert "note: category 1 is 'circle' in the data and 'disc' in the model" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "no.pth"], "no checkpoint at no.pth"),
        (["--coco_path", "nowhere"], "nowhere"),
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--max_images", "-1"], "--max_images is -1"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_eval_errors_are_one_line(weights, arguments, message, capsys):
    assert main(["eval", "--weights", weights, *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_eval_of_a_model_of_another_number_of_classes(coco_path, tmp_path, capsys):
    path = write_checkpoint(tmp_path / "a.pth", LabelMap((1, 2), ("a", "b")), label_map=None)
    assert main(["eval", "--weights", path, "--coco_path", coco_path]) == 1
    assert "the model has 2 classes and the data set 6" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_unknown_argument_has_a_suggestion(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--wieghts", "a.pth"])
    assert stop.value.code == 2
    assert "did you mean --weights?" in capsys.readouterr().err


@pytest.mark.slow
def test_eval_under_torchrun_gives_the_figures_of_one_process(weights, tmp_path):
    alone, together = tmp_path / "a.json", tmp_path / "b.json"
    arguments = ["eval", "--weights", weights, "--max_images", "5", "--device", "cpu"]
    assert main([*arguments, "--output", str(alone)]) == 0
    program = "import sys; from detr_fast.cli.main import main; sys.exit(main())"
    script = tmp_path / "detr_fast_main.py"
    script.write_text(program)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    finished = subprocess.run(
        [*run, str(script), *arguments, "--output", str(together)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert finished.stdout.count("on 5 images") == 1, "only one process speaks"
    first, second = (json.loads(path.read_text()) for path in (alone, together))
    assert first["coco_eval_bbox"] == second["coco_eval_bbox"]
    assert first["losses"] == pytest.approx(second["losses"])


# predict


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.jpg", "c.gif")):
        Image.fromarray(ShapesDataset(3).scene(index).image).save(folder / name)
    return folder


def test_predict_draws_and_writes_coco_json(weights, pictures, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["predict", str(pictures), "--weights", weights, "--threshold", "0"]
    assert main([*arguments, "--output", str(output)]) == 0
    names = ["a.png", "b.jpg", "c.png", "detections.json"]
    assert sorted(path.name for path in output.iterdir()) == names
    results = json.loads((output / "detections.json").read_text())
    assert [image["id"] for image in results["images"]] == [1, 2, 3]
    assert len(results["annotations"]) == 3 * 16
    assert len({annotation["id"] for annotation in results["annotations"]}) == 3 * 16
    assert {category["name"] for category in results["categories"]} == set(SHAPES_LABEL_MAP.names)
    size = Image.open(pictures / "a.png").size
    assert (results["images"][0]["width"], results["images"][0]["height"]) == size
    assert "48 objects in 3 images" in capsys.readouterr().out


def test_predict_results_are_read_by_pycocotools(weights, pictures, tmp_path, capsys):
    from pycocotools.coco import COCO

    output = tmp_path / "out"
    arguments = ["--weights", weights, "--threshold", "0", "--output", str(output)]
    assert main(["predict", str(pictures / "a.png"), *arguments]) == 0
    coco = COCO(str(output / "detections.json"))
    assert len(coco.loadAnns(coco.getAnnIds(imgIds=[1]))) == 16


def test_predict_keeps_images_of_one_name_apart(weights, pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(other / "a.png")
    output = tmp_path / "out"
    sources = [str(pictures / "a.png"), str(other)]
    assert main(["predict", *sources, "--weights", weights, "--output", str(output)]) == 0
    assert {path.name for path in output.glob("*.png")} == {"a.png", "a_2.png"}


def test_predict_goes_on_after_a_damaged_file_and_says_so(weights, pictures, tmp_path, capsys):
    (pictures / "b.jpg").write_bytes((pictures / "b.jpg").read_bytes()[:300])
    output = tmp_path / "out"
    arguments = ["--weights", weights, "--output", str(output)]
    assert main(["predict", str(pictures), *arguments]) == 1
    said = capsys.readouterr().err
    assert "b.jpg" in said
    assert "1 of 3 images were not read" in said
    assert {path.name for path in output.iterdir()} == {"a.png", "c.png", "detections.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg"], "no image or folder at none.jpg"),
        (["--threshold", "3", "none.jpg"], "--threshold is 3.0"),
    ],
)
def test_predict_errors_come_before_the_model_is_loaded(arguments, message, capsys):
    assert main(["predict", "--weights", "nothing.pth", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_predict_does_not_overwrite_the_images(weights, pictures, capsys):
    arguments = ["--weights", weights, "--output", str(pictures)]
    assert main(["predict", str(pictures / "a.png"), *arguments]) == 1
    assert "is the image itself" in capsys.readouterr().err


def test_predict_with_weights_that_do_not_say_their_model(tmp_path, pictures, capsys):
    model = build_model("detr_tiny", num_classes=3)
    torch.save({"model": model.state_dict(), "preprocess": NATIVE}, tmp_path / "bare.pth")
    arguments = ["predict", str(pictures / "a.png"), "--weights", str(tmp_path / "bare.pth")]
    arguments += ["--output", str(tmp_path / "out"), "--threshold", "0"]
    assert main(arguments) == 1
    assert "does not say of which model" in capsys.readouterr().err
    assert main([*arguments, "--model", "detr_tiny"]) == 0
    assert "class " in capsys.readouterr().out

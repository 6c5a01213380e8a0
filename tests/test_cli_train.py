"""`detr-fast train`: on shapes, on COCO, resumed, fine-tuned, and its errors."""

import json
import shutil

import pytest
import torch
import yaml

from detr_fast.cli.main import main
from detr_fast.data.shapes import write_shapes
from detr_fast.models.checkpoint import load_checkpoint
from detr_fast.training.recipe import preset
from detr_fast.training.run_folder import RunFolder

SMALL = ["--hidden_dim=16", "--nheads=2", "--enc_layers=1", "--dec_layers=2"]
SMALL += ["--dim_feedforward=32", "--num_queries=5", "--device=cpu"]
SHAPES = [*SMALL, "--train_images=4", "--val_images=2", "--batch_size=2"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(RunFolder, "plot", lambda self: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of one epoch with the step schedule."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "plot", lambda self: None)
        code = main(["train", *SHAPES, "--epochs=1", "--schedule=step", f"--output_dir={folder}"])
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def coco_of_five_classes(tmp_path_factory):
    """Shapes on disk without the last of their six classes."""
    root = write_shapes(tmp_path_factory.mktemp("coco"), train=4, val=2, side=(64, 64))
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for key, name in (("annotations", "category_id"), ("categories", "id")):
            content[key] = [entry for entry in content[key] if entry[name] != 6]
        path.write_text(json.dumps(content))
    return root


def records(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_without_data_it_learns_shapes(trained):
    args = yaml.safe_load((trained / "args.yaml").read_text())
    assert (args["dataset_file"], args["coco_path"]) == ("shapes", None)
    assert args["model"] == "detr_tiny"
    assert (args["epochs"], args["schedule"]) == (1, "step")
    assert args["model_options"]["hidden_dim"] == 16
    config = load_checkpoint(trained / "weights" / "best.pth").config
    assert (config["num_classes"], config["num_queries"], config["dropout"]) == (6, 5, 0.0)


def test_resume_takes_its_settings_from_the_checkpoint(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert main(["train", f"--resume={folder}/weights/last.pth", "--epochs=2"]) == 0
    assert "in epoch 2 of 2" in capsys.readouterr().out
    assert [record["epoch"] for record in records(folder)] == [0, 1]
    assert load_checkpoint(folder / "weights" / "last.pth").extra["args"]["train_images"] == 4


def test_nothing_to_do(trained, capsys):
    assert main(["train", f"--resume={trained}/weights/last.pth"]) == 1
    assert "nothing to do: checkpoint at epoch 1 of 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr=1"], f"lr is {preset('shapes').lr} in"),
        (["--hidden_dim=32"], "model_options is"),
        (["--weights=detr_tiny"], "resume and weights are both given"),
    ],
)
def test_what_resuming_cannot_change(trained, capsys, arguments, message):
    assert main(["train", f"--resume={trained}/weights/last.pth", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_run_folder_is_not_overwritten(trained, capsys):
    before = (trained / "log.txt").read_text()
    assert main(["train", *SHAPES, f"--output_dir={trained}"]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert (trained / "log.txt").read_text() == before


def test_fine_tuning_reports_what_it_loaded(trained, coco_of_five_classes, tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", f"--coco_path={coco_of_five_classes}", "--short_side=64", "--device=cpu"]
    command += [f"--weights={trained}/weights/best.pth", f"--output_dir={folder}", "--max_steps=1"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "re-initialised class_embed.weight, class_embed.bias" in output
    checkpoint = load_checkpoint(folder / "weights" / "last.pth")
    assert checkpoint.config["num_classes"] == 5
    assert checkpoint.label_map["names"] == ["circle", "square", "triangle", "star", "cross"]
    assert checkpoint.extra["args"]["model_options"]["hidden_dim"] == 16


def test_published_weights_that_cannot_be_had(coco_of_five_classes, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("detr_fast.models.checkpoint.cached_download", offline)
    assert main(["train", f"--coco_path={coco_of_five_classes}", "--device=cpu"]) == 1
    assert "no network" in capsys.readouterr().err


def test_imagenet_weights_that_cannot_be_had(coco_of_five_classes, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    command = ["train", f"--coco_path={coco_of_five_classes}", "--weights=none", "--device=cpu"]
    assert main(command) == 1
    assert "--no_pretrained_backbone" in capsys.readouterr().err


def test_evaluation_only(trained, capsys):
    assert main(["train", "--eval", f"--resume={trained}/weights/last.pth", "--device=cpu"]) == 0
    output = capsys.readouterr().out
    assert "AP50" in output
    assert "results go to" not in output


def test_overfit(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", *SMALL, "--overfit=2", "--epochs=2", f"--output_dir={folder}"]
    assert main(command) == 0
    assert "on the images that were to be learned by heart" in capsys.readouterr().out
    args = yaml.safe_load((folder / "args.yaml").read_text())
    assert (args["overfit"], args["batch_size"], args["augment"]) == (2, 2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coco_pth=x"], "did you mean --coco_path"),
        (["--preset=paper300"], "did you mean paper_300"),
        (["--amp=fp8"], "not a choice"),
    ],
)
def test_arguments_are_strict(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coco_path=nowhere"], "nowhere"),
        (["--device=cuda:99"], "device is 'cuda:99' but torch sees"),
        (["--device=tpu0"], "device is 'tpu0'; expected cpu, cuda or cuda:N"),
        (["--model=detr_demo"], "detr_demo takes neither"),
        ([*SMALL, "--train_images=2"], "the training set has 2 images but a step takes "),
        (["--amp=fp16", *SHAPES], "amp is 'fp16' on device 'cpu'"),
        (["--resume=nowhere.pth"], "no checkpoint at nowhere.pth"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("detr-fast: error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_few_steps_on_coco(shared_data, tmp_path, capsys):
    """The full-size model on real images, made small."""
    folder = tmp_path / "run"
    data = [f"--coco_path={shared_data / 'coco_tiny'}", "--device=cpu"]
    command = ["train", *data, "--weights=none", "--no_pretrained_backbone", "--max_steps=2"]
    command += ["--short_side=96", "--max_size=160", f"--output_dir={folder}"]
    assert main(command) == 0
    (record,) = records(folder)
    assert torch.isfinite(torch.tensor(record["train_loss"]))
    assert len(record["test_coco_eval_bbox"]) == 12
    assert record["n_parameters"] == 41_302_368
    best = folder / "weights" / "best.pth"
    assert load_checkpoint(best).config["num_classes"] == 91
    capsys.readouterr()
    assert main(["eval", *data, f"--resume={best}", "--max_images=4"]) == 0
    assert "AP50" in capsys.readouterr().out
    # 700 MB that nobody will look at.
    shutil.rmtree(folder)

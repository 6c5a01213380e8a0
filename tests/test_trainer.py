"""The training loop: equal batches, non-finite steps, signals, faults before the first step."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_toy_training import images_of_second_process, joined_run
from tolerances import JOINED_GRADIENTS
from toy_training import LABELS, ToyDataset, toy_model, toy_recipe

from detr_fast.data.checks import DataError
from detr_fast.models.checkpoint import load_checkpoint
from detr_fast.training.run_folder import RunFolder
from detr_fast.training.sampling import StepSampler
from detr_fast.training.trainer import NonFiniteError, NothingToDoError, Trainer

SCRIPT = Path(__file__).with_name("run_toy_training.py")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch, request):
    """Drawing takes longer than a toy training."""
    if request.node.name != "test_run_folder":
        monkeypatch.setattr(RunFolder, "plot", lambda self: None)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def environment():
    """For a child that imports the package as this process does."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folders of the runs of `run_toy_training.py distributed` under torchrun, and its output."""
    folder = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    command += [str(SCRIPT), str(folder), "distributed"]
    launcher = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = launcher.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        # Not killed, or it would leave its processes behind.
        launcher.terminate()
        output, _ = launcher.communicate()
        pytest.fail(f"two processes did not end within 600 s:\n{output}")
    assert launcher.returncode == 0, output
    return folder, output


def gradients_and_weights(path):
    """Exponential averages of the gradient after two steps, and weights, by name."""
    checkpoint = load_checkpoint(path)
    optimizer = checkpoint.extra["optimizer"]
    names = [name for group in optimizer["param_groups"] for name in group["names"]]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    state = optimizer["state"]
    gradients = {n: state[i]["exp_avg"] for n, i in zip(names, numbers, strict=True)}
    return gradients, checkpoint.model


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined") / "run"
    joined_run(folder, 4, recipe={"clip_max_norm": 0})
    return folder


@pytest.mark.parametrize("kind", ["joined", "accumulated"])
def test_two_processes_equal_one_with_the_joined_batch(two_processes, joined, kind):
    """The second process has no object in any of its images."""
    folder, _ = two_processes
    expected = gradients_and_weights(joined / "weights" / "last.pth")
    found = gradients_and_weights(folder / kind / "weights" / "last.pth")
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=JOINED_GRADIENTS)
    assert max(g.abs().max() for g in expected[0].values()) > 1e3 * JOINED_GRADIENTS


def test_processes_log_what_one_logs(two_processes, joined):
    folder, output = two_processes
    one, two = (json.loads((f / "log.txt").read_text()) for f in (joined, folder / "joined"))
    assert two.keys() == one.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], abs=JOINED_GRADIENTS), name
    # Only the first of the two processes speaks.
    assert output.count("epoch 1/1: loss") == 3


def test_processes_agree_to_skip(two_processes):
    folder, output = two_processes
    bad = 100 + min(images_of_second_process(8, 2))
    assert output.count("skipped step") == 1
    assert f"decoder layer 1 of 2, image {bad}" in output
    state = load_checkpoint(folder / "skipped" / "weights" / "last.pth").model
    assert all(torch.isfinite(value).all() for value in state.values())


def test_accumulation_equals_the_large_batch(tmp_path, joined):
    joined_run(tmp_path / "run", 1, recipe={"clip_max_norm": 0, "accumulate": 4})
    expected = gradients_and_weights(joined / "weights" / "last.pth")
    found = gradients_and_weights(tmp_path / "run" / "weights" / "last.pth")
    for one, two in zip(expected, found, strict=True):
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=JOINED_GRADIENTS)


def test_run_folder(tmp_path):
    model = toy_model()
    model.label_map = None
    trainer = Trainer(
        model, toy_recipe(epochs=2), ToyDataset(4), ToyDataset(2), output_dir=tmp_path / "run"
    )
    result = trainer.fit()
    assert load_checkpoint(trainer.folder.best).label_map == LABELS.to_dict()
    assert result.exit_code == 0
    assert result.folder == tmp_path / "run"
    files = {str(p.relative_to(result.folder)) for p in result.folder.rglob("*") if p.is_file()}
    assert files == {
        "args.yaml",
        "log.txt",
        "results.csv",
        "results.png",
        "weights/best.pth",
        "weights/last.pth",
    }
    lines = [json.loads(line) for line in (result.folder / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    for name in ("loss", "loss_ce", "loss_bbox_0", "loss_giou", "class_error"):
        assert f"train_{name}" in lines[0]
        assert f"test_{name}" in lines[0]
    for name in ("loss_ce", "loss_bbox_0", "cardinality_error", "class_error"):
        assert f"train_{name}_unscaled" in lines[0]
    assert lines[0]["train_lr"] == pytest.approx(1e-4)
    assert lines[0]["train_loss_bbox"] == pytest.approx(5 * lines[0]["train_loss_bbox_unscaled"])
    assert len(lines[0]["test_coco_eval_bbox"]) == 12
    assert lines[0]["n_parameters"] == sum(p.numel() for p in trainer.model.parameters())


def test_loss_goes_down(tmp_path):
    recipe = toy_recipe(epochs=8, lr=1e-3, lr_backbone=1e-3, batch_size=4)
    trainer = Trainer(toy_model(), recipe, ToyDataset(8), output_dir=tmp_path / "run")
    trainer.fit()
    losses = [record["train_loss"] for record in trainer.folder.records()]
    assert losses[-1] < 0.8 * losses[0]


def test_images_without_any_object(tmp_path):
    """Works, with gradients for every parameter; the class error is not a number."""
    data = ToyDataset(2, empty=(0, 1))
    trainer = Trainer(
        toy_model(), toy_recipe(epochs=1), data, output_dir=tmp_path / "run", check_data=False
    )
    trainer.fit()
    (record,) = trainer.folder.records()
    assert record["train_class_error"] is None
    assert math.isfinite(record["train_loss"])
    assert all(p.grad is not None for p in trainer.model.parameters())


def test_bf16_autocast(tmp_path):
    recipe = toy_recipe(epochs=1, amp="bf16")
    trainer = Trainer(
        toy_model(), recipe, ToyDataset(4), ToyDataset(2), output_dir=tmp_path / "run"
    )
    record = trainer.fit().record
    assert math.isfinite(record["train_loss"])
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"amp is 'fp16' on device 'cpu'.*Use 'bf16'"):
        Trainer(toy_model(), toy_recipe(amp="fp16"), ToyDataset(4))


@pytest.mark.cuda
@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_on_a_gpu(tmp_path, amp):
    recipe = toy_recipe(epochs=8, lr=1e-3, lr_backbone=1e-3, batch_size=4, amp=amp)
    trainer = Trainer(
        toy_model(),
        recipe,
        ToyDataset(8),
        ToyDataset(2),
        output_dir=tmp_path / "run",
        device="cuda",
    )
    trainer.fit()
    losses = [record["train_loss"] for record in trainer.folder.records()]
    assert losses[-1] < 0.8 * losses[0]


def test_a_step_that_is_not_finite_stops(tmp_path):
    model = toy_model(backbone_norm="frozen")
    trainer = Trainer(
        model, toy_recipe(epochs=1), ToyDataset(6, nan=(3,)), output_dir=tmp_path / "run"
    )
    with pytest.raises(NonFiniteError) as error:
        trainer.fit()
    message = str(error.value)
    assert "decoder layer 1 of 2, image 103; decoder layer 2 of 2, image 103" in message
    assert str(trainer.folder.last) in message
    state = load_checkpoint(trainer.folder.last).model
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_step_that_is_not_finite_is_skipped(tmp_path, capsys):
    """BatchNorm, too, is as if the step had not been."""
    trainer = Trainer(
        toy_model(),
        toy_recipe(epochs=2, nonfinite="skip"),
        ToyDataset(6, nan=(3,)),
        output_dir=tmp_path / "run",
    )
    trainer.fit()
    assert capsys.readouterr().out.count("skipped step") == 2
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    assert trainer.state.optimizer.state_dict()["state"][0]["step"] == 4
    assert trainer.state.steps == 6


def test_skipping_every_step_ends(tmp_path):
    trainer = Trainer(
        toy_model(),
        toy_recipe(epochs=20, nonfinite="skip"),
        ToyDataset(4, nan=(0, 1, 2, 3)),
        output_dir=tmp_path / "run",
    )
    with pytest.raises(NonFiniteError):
        trainer.fit()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(tmp_path, number, capsys):
    data = ToyDataset(6, signal_at=3, signal_number=number)
    trainer = Trainer(toy_model(), toy_recipe(), data, output_dir=tmp_path / "run")
    before = signal.getsignal(number)
    result = trainer.fit()
    assert result.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert f"resume from {trainer.folder.last}" in capsys.readouterr().out
    progress = load_checkpoint(trainer.folder.last).extra["progress"]
    assert (progress["steps"], progress["seen"]) == (2, 4)


def test_max_steps_ends_with_an_evaluation(tmp_path):
    trainer = Trainer(
        toy_model(),
        toy_recipe(),
        ToyDataset(8),
        ToyDataset(2),
        output_dir=tmp_path / "run",
        max_steps=2,
    )
    record = trainer.fit().record
    assert trainer.state.steps == 2
    assert len(record["test_coco_eval_bbox"]) == 12
    assert trainer.folder.best.is_file()


def test_training_set_smaller_than_a_batch(tmp_path):
    with pytest.raises(ValueError, match="the training set has 3 images but a step takes 4"):
        Trainer(toy_model(), toy_recipe(accumulate=2), ToyDataset(3), output_dir=tmp_path / "run")


def test_data_without_annotations(tmp_path):
    data = ToyDataset(4, empty=range(4))
    trainer = Trainer(toy_model(), toy_recipe(), data, output_dir=tmp_path / "run")
    with pytest.raises(DataError, match="no annotations"):
        trainer.fit()
    assert not (tmp_path / "run").exists()


def test_classes_of_model_and_data_differ():
    with pytest.raises(ValueError, match="the model has 5 classes, the training set 2"):
        Trainer(toy_model(num_classes=5), toy_recipe(), ToyDataset(4))


def test_nothing_to_do(tmp_path):
    Trainer(toy_model(), toy_recipe(epochs=1), ToyDataset(2), output_dir=tmp_path / "run").fit()
    last = tmp_path / "run" / "weights" / "last.pth"
    trainer = Trainer(
        toy_model(),
        toy_recipe(epochs=1),
        ToyDataset(2),
        resume=load_checkpoint(last),
        resume_path=last,
    )
    with pytest.raises(NothingToDoError, match="nothing to do: checkpoint at epoch 1 of 1"):
        trainer.fit()


def test_no_steps_left(tmp_path):
    run = {"output_dir": tmp_path / "run", "max_steps": 1}
    Trainer(toy_model(), toy_recipe(), ToyDataset(4), **run).fit()
    last = tmp_path / "run" / "weights" / "last.pth"
    resume = {"resume": load_checkpoint(last), "resume_path": last, "max_steps": 1}
    trainer = Trainer(toy_model(), toy_recipe(), ToyDataset(4), **resume)
    with pytest.raises(NothingToDoError, match="checkpoint after 1 steps, max_steps is 1"):
        trainer.fit()


def test_start_epoch_advances_the_schedule(tmp_path):
    recipe = toy_recipe(epochs=3, lr_drop=2)
    trainer = Trainer(
        toy_model(), recipe, ToyDataset(2), output_dir=tmp_path / "run", start_epoch=2
    )
    record = trainer.fit().record
    assert record["epoch"] == 2
    assert record["train_lr"] == pytest.approx(1e-5)


def test_steps_of_two_processes_take_the_images_of_one():
    one = list(StepSampler(11, 4, seed=5))
    two = [list(StepSampler(11, 2, 5, process, 2)) for process in (0, 1)]
    for step in range(2):
        both = [s for share in two for s in share[2 * step : 2 * step + 2]]
        assert sorted(both) == sorted(one[4 * step : 4 * step + 4])


def test_an_epoch_can_be_entered_in_its_middle():
    sampler = StepSampler(10, 2, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, seen=4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == 6
    sampler.set_epoch(4)
    assert list(sampler) != whole

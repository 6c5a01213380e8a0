"""Checkpoints: whole or not at all, resumable bit for bit, and those of the original DETR."""

import argparse
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import run_python
from run_toy_training import resumable_run
from toy_training import LABELS, ToyDataset, toy_model, toy_recipe

from detr_fast.models.checkpoint import load_checkpoint
from detr_fast.training import checkpoints
from detr_fast.training.checkpoints import CheckpointWriteError, write_checkpoint
from detr_fast.training.optimization import build_optimizer
from detr_fast.training.run_folder import RunFolder
from detr_fast.training.trainer import Trainer

_FDOPEN = os.fdopen
SCRIPT = Path(__file__).with_name("run_toy_training.py")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Drawing takes longer than a toy training, and threads change the order of sums."""
    monkeypatch.setattr(RunFolder, "plot", lambda self: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "plot", lambda self: None)
        trainer, _ = resumable_run(tmp_path_factory.mktemp("uninterrupted") / "run")
    torch.set_num_threads(threads)
    return trainer


def assert_same_training(one, two):
    """Weights, optimizer, schedule and log, bit for bit."""
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
    states = [t.state.optimizer.state_dict()["state"] for t in (one, two)]
    for number, entry in states[0].items():
        for key, value in entry.items():
            assert torch.equal(value, states[1][number][key])
    assert one.state.scheduler.state_dict() == two.state.scheduler.state_dict()
    assert one.folder.records() == two.folder.records()


def test_resume_after_a_kill_is_bit_for_bit(tmp_path, uninterrupted):
    """Killed in the second of three epochs, with dropout and noise from NumPy's generator."""
    folder = tmp_path / "run"
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), str(folder), "killed"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -9, done.stdout + done.stderr
    last = folder / "weights" / "last.pth"
    checkpoint = load_checkpoint(last)
    assert checkpoint.extra["epoch"] == 0
    resumed, result = resumable_run(None, checkpoint, last)
    assert result.folder == folder
    assert_same_training(uninterrupted, resumed)


def test_resume_after_a_signal_is_bit_for_bit(tmp_path, uninterrupted):
    """Stopped in the middle of an epoch; the rest of its images follow, and its averages hold."""
    interrupted, result = resumable_run(tmp_path / "run", signal_at=9)
    assert result.exit_code == 130
    last = interrupted.folder.last
    checkpoint = load_checkpoint(last)
    assert checkpoint.extra["progress"]["seen"] == 4
    resumed, _ = resumable_run(None, checkpoint, last)
    assert_same_training(uninterrupted, resumed)


def test_an_epoch_that_was_not_logged_is_evaluated_first(tmp_path, uninterrupted, monkeypatch):
    """Killed between the checkpoint of the second epoch and its evaluation."""

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            resumable_run(tmp_path / "run")
    last = tmp_path / "run" / "weights" / "last.pth"
    resumed, _ = resumable_run(None, load_checkpoint(last), last)
    assert_same_training(uninterrupted, resumed)


def test_checkpoints_hold_plain_types_and_what_detection_needs(uninterrupted):
    last, best = (
        torch.load(p, weights_only=True)
        for p in (uninterrupted.folder.last, uninterrupted.folder.best)
    )
    for content in (last, best):
        assert content["config"]["name"] == "detr_tiny"
        assert content["label_map"] == LABELS.to_dict()
        assert content["preprocess"] == {"short_side": None, "max_size": 1333}
        assert content["args"]["lr"] == 1e-3
    assert {"optimizer", "lr_scheduler", "scaler", "rng", "progress"} <= last.keys()
    assert last["epoch"] == 2
    assert "optimizer" not in best
    assert 0 <= best["AP"] <= 1


def test_best_cannot_be_resumed(uninterrupted):
    checkpoint = load_checkpoint(uninterrupted.folder.best)
    with pytest.raises(ValueError, match=r"has no 'optimizer'.*resume from a last.pth"):
        Trainer(toy_model(), toy_recipe(), ToyDataset(2), resume=checkpoint)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"schedule": "step"}, "schedule is to be 'step'"),
        ({"schedule": "one_cycle", "epochs": 4}, "has 9 steps, this run 12"),
    ],
)
def test_schedules_that_do_not_fit(uninterrupted, recipe, message):
    checkpoint = load_checkpoint(uninterrupted.folder.last)
    with pytest.raises(ValueError, match=message):
        Trainer(toy_model(), toy_recipe(**recipe), ToyDataset(6), resume=checkpoint)


def original_checkpoint(path, model, epoch):
    """A file as the original's main.py leaves it: no names, integer step counts, a Namespace."""
    recipe = toy_recipe(lr=3e-4)
    optimizer = build_optimizer(model, recipe)
    for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        p.grad = torch.full_like(p, number)
    optimizer.step()
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["step"] = int(entry["step"])
    kept = ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")
    state["param_groups"] = [
        {**{k: group[k] for k in kept}, "initial_lr": group["lr"]}
        for group in state["param_groups"]
    ]
    schedule = {
        "step_size": 200,
        "gamma": 0.1,
        "base_lrs": [3e-4, 1e-5],
        "last_epoch": epoch + 1,
        "_step_count": epoch + 2,
        "_last_lr": [3e-4, 1e-5],
    }
    args = argparse.Namespace(lr=3e-4, lr_drop=200, epochs=300, num_queries=5, dropout=0.0)
    content = {"model": model.state_dict(), "optimizer": state, "lr_scheduler": schedule}
    torch.save({**content, "epoch": epoch, "args": args}, path)
    return state


def test_the_original_s_checkpoints_are_resumed(tmp_path):
    path = tmp_path / "checkpoint.pth"
    stored = original_checkpoint(path, toy_model(seed=1, backbone_norm="frozen"), epoch=4)
    checkpoint = load_checkpoint(path)
    model = toy_model(seed=2, backbone_norm="frozen")
    trainer = Trainer(
        model,
        toy_recipe(epochs=6),
        ToyDataset(4),
        output_dir=tmp_path / "run",
        resume=checkpoint,
        resume_path=path,
    )
    assert trainer.state.epoch == 5
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint.model[name]), name
    restored = trainer.state.optimizer.state_dict()["state"]
    assert restored.keys() == stored["state"].keys()
    for number, entry in stored["state"].items():
        assert torch.equal(restored[number]["exp_avg"], entry["exp_avg"])
        assert restored[number]["step"] == 1
    record = trainer.fit().record
    assert record["epoch"] == 5
    assert record["train_lr"] == pytest.approx(3e-4)


def test_an_optimizer_of_other_parameters_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    original_checkpoint(path, toy_model(dec_layers=3), epoch=0)
    saved = load_checkpoint(path)
    model = toy_model()
    optimizer = build_optimizer(model, toy_recipe())
    with pytest.raises(ValueError, match="optimizer state is of"):
        checkpoints.load_optimizer_state(optimizer, saved.extra["optimizer"], saved.model)


def _full_after(limit):
    """`os.fdopen` whose files have no space behind `limit` bytes."""

    def opened(*args, **kwargs):
        file = _FDOPEN(*args, **kwargs)
        write, written = file.write, [0]

        class Full:
            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data):
                written[0] += len(data)
                if written[0] > limit:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(data)

        return Full()

    return opened


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, limit):
    path = tmp_path / "last.pth"
    write_checkpoint({"model": {"weight": torch.ones(2)}}, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", _full_after(limit))
        with pytest.raises(CheckpointWriteError) as error:
            write_checkpoint({"model": {"weight": torch.zeros(5000)}}, path)
    message = str(error.value)
    assert str(path) in message
    assert "No space left on device" in message
    assert "the previous last.pth is intact" in message
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_limit_of_the_system_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    write_checkpoint({"model": {"weight": torch.ones(2)}}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(CheckpointWriteError, match=r"File too large.*is intact"):
            write_checkpoint({"model": {"weight": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_kill_while_writing_keeps_the_previous_checkpoint(tmp_path, moment):
    """Killed after a part of the bytes, and between the last byte and the final name."""
    path = tmp_path / "last.pth"
    write_checkpoint({"model": {"weight": torch.ones(2)}}, path)
    before = path.read_bytes()
    killed = run_python(
        f"""
import os, signal, sys, torch
from detr_fast.training.checkpoints import write_checkpoint

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def save_a_part(checkpoint, file):
    file.write(b"half a checkpoint")
    file.flush()
    kill()

if {moment!r} == "write":
    torch.save = save_a_part
else:
    os.replace = kill
write_checkpoint({{"model": {{"weight": torch.zeros(5000)}}}}, sys.argv[1])
""",
        tmp_path,
        str(path),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert path.read_bytes() == before
    write_checkpoint({"model": {"weight": torch.full((2,), 2.0)}}, path)
    assert load_checkpoint(path).model["weight"].tolist() == [2, 2]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        CheckpointWriteError, match="No such file or directory; nothing was written"
    ):
        write_checkpoint({}, tmp_path / "missing" / "last.pth")


def test_a_full_disk_ends_the_training_with_the_last_epoch_kept(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    written = []

    def second_is_full(*args, **kwargs):
        written.append(args)
        return (_FDOPEN if len(written) == 1 else _full_after(1000))(*args, **kwargs)

    trainer = Trainer(toy_model(), toy_recipe(), ToyDataset(2), output_dir=folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", second_is_full)
        with pytest.raises(CheckpointWriteError):
            trainer.fit()
    assert load_checkpoint(folder / "weights" / "last.pth").extra["epoch"] == 0


class TestRunFolder:
    def test_a_folder_in_use_is_not_overwritten(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="exists and is not empty"):
            RunFolder.create(tmp_path / "run")
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]

    def test_default_folders_count_up(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        paths = [str(RunFolder.create().path) for _ in range(3)]
        assert paths == ["runs/train", "runs/train2", "runs/train3"]

    def test_resuming_elsewhere_does_not_overwrite(self, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "log.txt").write_text('{"epoch": 0}\n')
        with pytest.raises(FileExistsError):
            RunFolder.reopen(tmp_path / "other", tmp_path / "checkpoint.pth", 1)

    def test_epochs_to_be_run_again_are_forgotten(self, tmp_path):
        folder = RunFolder.create(tmp_path / "run")
        folder.write_args({"lr": 1e-4})
        for epoch in range(3):
            folder.append({"train_loss": float("nan"), "epoch": epoch})
        with folder.log.open("a") as file:
            file.write('{"train_lo')
        (folder.path / "weights" / ".last.pth.x.tmp").write_bytes(b"half")
        again = RunFolder.reopen(None, folder.last, 2)
        assert again.path == folder.path
        assert again.records() == [{"train_loss": None, "epoch": e} for e in range(2)]
        assert (folder.path / "results.csv").read_text().splitlines() == [
            "epoch,train_loss",
            "0,",
            "1,",
        ]
        assert list((folder.path / "weights").iterdir()) == []

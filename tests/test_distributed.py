"""Two processes under gloo: gradients of the joined batch, helpers, and the rank that is lost."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from tolerances import JOINED_GRADIENTS

from detr_fast.training import distributed

SCRIPT = Path(worker.__file__)
ROOT = SCRIPT.parents[1]


def environment(**added):
    kept = {name: value for name, value in os.environ.items() if name not in _GROUP}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | added


_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """Results of the two processes of one run of the worker."""
    folder = tmp_path_factory.mktemp("torchrun")
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(SCRIPT), "gradients", str(folder)),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    return {
        kind: [torch.load(folder / f"{kind}{rank}.pt") for rank in (0, 1)]
        for kind in ("gradients", "masks", "helpers")
    }


@pytest.mark.filterwarnings("ignore:an image has")
@pytest.mark.parametrize("micro_batches", [1, worker.IMAGES_PER_RANK])
@pytest.mark.parametrize("aux_repeats", worker.AUX_REPEATS)
@pytest.mark.parametrize("case", worker.TARGET_COUNTS)
def test_gradients_and_losses_are_those_of_one_process_with_the_joined_batch(
    torchrun, case, micro_batches, aux_repeats
):
    features, targets = worker.joined_batch(worker.TARGET_COUNTS[case])
    expected, expected_losses = worker.step(
        worker.Heads(), worker.make_criterion(aux_repeats), features, targets
    )
    for rank in (0, 1):
        grads, losses = torchrun["gradients"][rank][case, micro_batches, aux_repeats]
        assert grads.keys() == expected.keys()
        for name, value in expected.items():
            assert (grads[name] - value).abs().max() < JOINED_GRADIENTS, name
        for name, value in expected_losses.items():
            torch.testing.assert_close(losses[name], value, equal_nan=True)


def test_gradients_differ_where_each_process_counts_for_itself(torchrun):
    """The comparison above can fail: local counts give other gradients when one rank is empty."""
    features, targets = worker.joined_batch(worker.TARGET_COUNTS["one rank empty"])
    expected = torchrun["gradients"][0]["one rank empty", 1, 1][0]
    size = worker.IMAGES_PER_RANK
    model, criterion = worker.Heads(), worker.make_criterion(aux_repeats=1)
    first, _ = worker.step(model, criterion, features[:size], targets[:size])
    second, _ = worker.step(model, criterion, features[size:], targets[size:])
    difference = max(
        ((first[name] + second[name]) / 2 - value).abs().max() for name, value in expected.items()
    )
    assert difference > 1000 * JOINED_GRADIENTS


@pytest.mark.parametrize("division", worker.MASK_MICRO_BATCHES)
@pytest.mark.parametrize("case", worker.TARGET_COUNTS)
def test_panoptic_training_is_that_of_one_process_with_the_joined_batch(torchrun, case, division):
    model = worker.mask_model()
    images, targets = worker.joined_mask_batch(model, worker.TARGET_COUNTS[case])
    expected, expected_losses = worker.mask_step(model, images, targets, [len(images)])
    assert {"loss_mask", "loss_dice"} < expected_losses.keys()
    learned = expected["mask_head.out_lay.weight"].abs().max() > 1000 * JOINED_GRADIENTS
    assert learned == any(worker.TARGET_COUNTS[case])
    for rank in (0, 1):
        grads, losses = torchrun["masks"][rank][case, division]
        assert grads.keys() == expected.keys()
        for name, value in expected.items():
            assert (grads[name] - value).abs().max() < JOINED_GRADIENTS, name
        assert losses == pytest.approx(expected_losses, abs=JOINED_GRADIENTS, nan_ok=True)


def test_helpers_of_two_processes(torchrun):
    for rank, seen in enumerate(torchrun["helpers"]):
        assert (seen["rank"], seen["world_size"], seen["main"]) == (rank, 2, rank == 0)
        assert seen["sum"].tolist() == [2.0, 1.0]
        assert seen["mean"].tolist() == [1.0, 0.5]
        assert seen["untouched"].tolist() == [1.0, rank]
        assert {name: value.item() for name, value in seen["dict"].items()} == {"a": 3.0, "b": 0.5}
        assert seen["any"] is True
        assert seen["none"] is False
        assert seen["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_helpers_of_one_process():
    value = torch.tensor([1.0, 2.0])
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main_process()
    assert not distributed.is_distributed()
    assert torch.equal(distributed.all_reduce_sum(value), value)
    assert torch.equal(distributed.all_reduce_mean(value), value)
    assert distributed.reduce_dict({"a": value[0]}) == {"a": value[0]}
    assert distributed.any_process(True) is True
    assert distributed.all_gather(3) == [3]
    distributed.barrier("anywhere")
    distributed.shutdown()
    with pytest.raises(RuntimeError, match="unrelated"), distributed.naming_lost_ranks("step 1"):
        raise RuntimeError("unrelated")


def test_a_lost_rank_is_named_in_a_collective_and_at_a_barrier(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "lost_rank", str(tmp_path)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **group),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    (output, _), _ = (process.communicate(timeout=120) for process in processes)
    assert processes[0].returncode == 0, output
    in_step, at_barrier = output.splitlines()
    assert in_step.startswith("rank 1 was lost during step 120: no answer within 1 s")
    assert at_barrier.startswith(
        "rank 1 did not arrive at 'end of epoch 3' within 1 s; rank 0 waited there"
    )


# --- joining a group ---


@pytest.fixture
def clean_environment(monkeypatch):
    for name in _GROUP:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_there_is_no_group(clean_environment):
    device = distributed.init_from_env("gloo")
    assert device == torch.device("cpu")
    assert not distributed.is_distributed()


def test_half_a_description_of_a_group_is_refused(clean_environment):
    clean_environment.setenv("WORLD_SIZE", "2")
    clean_environment.setenv("RANK", "0")
    with pytest.raises(
        ValueError, match="WORLD_SIZE is 2 but LOCAL_RANK, MASTER_ADDR, MASTER_PORT are"
    ):
        distributed.init_from_env("gloo")


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="must be 'nccl', 'gloo' or None; got 'mpi'"):
        distributed.init_from_env("mpi")

"""Processes of one training run: joining them, reducing over them, and naming the one that is lost.

Every helper works unchanged where there is a single process and no process group.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def init_from_env(backend: str | None = None, timeout_seconds: float = 1800.0) -> torch.device:
    """Joins the process group that torchrun describes in the environment, if there is one.

    Args:
        backend: "nccl" or "gloo"; None takes nccl where CUDA devices are visible.
        timeout_seconds: how long a collective waits for the other processes.

    Returns:
        The device this process is to use: the CUDA device of its LOCAL_RANK, or the CPU where CUDA
        is missing or `backend` is "gloo".

    Raises:
        ValueError: if the environment describes a group only in part, `backend` is unknown, or
            there are more processes than CUDA devices on this machine.
    """
    cuda = torch.cuda.is_available()
    if backend not in (None, "nccl", "gloo"):
        raise ValueError(f"backend must be 'nccl', 'gloo' or None; got {backend!r}")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_distributed():
        return _local_device(cuda and backend != "gloo")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start the processes with torchrun"
        )
    backend = backend or ("nccl" if cuda else "gloo")
    device = _local_device(backend == "nccl")
    timeout = datetime.timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, timeout=timeout)
    return device


def in_first_process(action: Callable[[], Any]) -> Any:
    """The result of `action` in the first process, or its error, in all processes."""
    outcome: Any = None
    if is_main_process():
        try:
            outcome = action()
        except (OSError, ValueError) as error:
            outcome = error
    outcome = all_gather(outcome)[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _local_device(cuda: bool) -> torch.device:
    if not cuda:
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process with LOCAL_RANK {local_rank} has no CUDA device of its own: this machine has "
            f"{torch.cuda.device_count()}. Start at most as many processes, or use backend 'gloo'"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


_GLOO_LETS_GO_SECONDS = 0.5


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if not is_distributed():
        return
    gloo = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    if gloo:
        # A thread of gloo lets go of its tensors a moment after a collective has completed, and
        # needs the interpreter for it: if that is ending by then, the process aborts.
        time.sleep(_GLOO_LETS_GO_SECONDS)


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model wrapped so that its gradients are means over all processes, itself for one."""
    if world_size() == 1:
        return model
    # Running statistics differ between processes, frozen ones do not: no need to send those.
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=batch_norm,
    )


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Number of this process; 0 without a group."""
    return dist.get_rank() if is_distributed() else 0


def is_main_process() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, as a new tensor on its device."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of a floating-point `tensor` over all processes, as a new tensor on its device."""
    if world_size() == 1:
        return tensor
    return all_reduce_sum(tensor) / world_size()


def reduce_dict(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of every scalar over all processes, with one collective for the whole dictionary.

    Args:
        values: scalars by name; every process brings the same names and floating-point types.

    Returns:
        Detached means, in the order of `values`.
    """
    if world_size() == 1 or not values:
        return {name: value.detach() for name, value in values.items()}
    # Sorted, since nothing promises that every process filled its dictionary in the same order.
    names = sorted(values)
    means = all_reduce_mean(torch.stack([values[name].detach() for name in names]))
    by_name = dict(zip(names, means.unbind(), strict=True))
    return {name: by_name[name] for name in values}


def any_process(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is true in any process: how all of them decide alike to stop.

    `device` must be one that the group's backend can reduce on.
    """
    if world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)))


def all_gather(value: Any) -> list[Any]:
    """The picklable `value` of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


_barriers = 0


def barrier(what: str, timeout_seconds: float = 1800.0) -> None:
    """Waits until every process has come here, and names those that do not.

    It goes through the key-value store of the group instead of a collective, so that it works alike
    with every backend, and the device is not waited for.

    Args:
        what: the place in the run, for the message ("end of epoch 3").
        timeout_seconds: how long to wait.

    Raises:
        RuntimeError: naming the ranks that did not arrive in time.
    """
    global _barriers
    if world_size() == 1:
        return
    _barriers += 1
    missing = _roll_call(f"barrier/{_barriers}", timeout_seconds)
    if missing:
        raise RuntimeError(
            f"{_ranks(missing)} did not arrive at '{what}' within {timeout_seconds:g} s; "
            f"{_ranks([rank()])} waited there. Look at the end of that process's output"
        )


@contextlib.contextmanager
def naming_lost_ranks(what: str, roll_call_seconds: float = 10.0) -> Iterator[None]:
    """Adds to a failed collective which processes no longer answer, where that can be found out.

    A backend reports a lost peer as a closed connection or a time-out. After such an error every
    process still alive answers a roll call; those that do not are named.

    Args:
        what: the place in the run, for the message ("step 120").
        roll_call_seconds: how long the others have to answer. After a failed collective the
            processes fail within moments of each other.

    Raises:
        RuntimeError: from the original error, if ranks are missing; other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_communication_error(error):
            raise
        missing = _roll_call(f"roll_call/{what}", roll_call_seconds)
        if not missing:
            raise
        raise RuntimeError(
            f"{_ranks(missing)} was lost during {what}: no answer within {roll_call_seconds:g} s "
            f"of the failure that {_ranks([rank()])} saw ({str(error).splitlines()[0]})"
        ) from error


def _is_communication_error(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    # gloo raises plain RuntimeErrors.
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection", "timed out", "nccl"))


def _roll_call(key: str, timeout_seconds: float) -> list[int]:
    """Reports this rank under `key`, and returns the ranks that have not done so in time."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"detr_fast/{key}/{rank()}", "here")
        deadline = time.monotonic() + timeout_seconds
        missing = list(range(world_size()))
        while True:
            missing = [r for r in missing if not store.check([f"detr_fast/{key}/{r}"])]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.02)
    except dist.DistError:
        # The store lives in rank 0 or its launcher: when it is gone, so is rank 0.
        return [0]


def _ranks(numbers: list[int]) -> str:
    word = "rank" if len(numbers) == 1 else "ranks"
    return f"{word} {', '.join(map(str, numbers))}"

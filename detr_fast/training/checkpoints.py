"""Training checkpoints: written whole or not at all, read back without unpickling code.

A checkpoint is a dictionary of plain types and tensors, so `torch.load(weights_only=True)` reads
it. Its keys: `model` (state dict), `config`, `label_map`, `preprocess` (what it takes to detect
with it), and, in those that training can be resumed from, `optimizer`, `lr_scheduler`, `scaler`,
`epoch` (index of the last completed epoch, -1 for none), `progress`, `args` and `rng`.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .optimization import in_backbone


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; whatever stood at its path before still stands there."""


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Writes a checkpoint so that its path holds the old file or the new one, never half of one.

    The bytes go to a temporary file in the same folder and reach the disk before it takes the
    final name.

    Args:
        checkpoint: Plain types and tensors, nested in dictionaries, lists and tuples.
        path: Where to; its folder must exist.

    Raises:
        CheckpointWriteError: The disk is full, or the folder is missing or not writable.
    """
    path = Path(path)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        _give_usual_mode(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        cause = _os_error(error) if isinstance(error, Exception) else None
        if cause is None:
            raise
        previous = f"the previous {path.name} is intact" if path.exists() else "nothing was written"
        raise CheckpointWriteError(
            cause.errno,
            f"could not write the checkpoint {path}: {cause.strerror or cause}; {previous}. "
            "Free some space, or write elsewhere, and resume",
        ) from error
    _flush_folder(path.parent)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], model_keys: Iterable[str]
) -> None:
    """Restores an optimizer built by `build_optimizer`, matching parameters by name.

    Files of the original DETR do not name the parameters of their optimizer. They number them in
    the order of the model's keys, those outside the backbone first.

    Args:
        optimizer: Its groups hold `names`.
        saved: A state dict of an optimizer, of this package or of the original.
        model_keys: Keys of the state dict stored beside it, in their order there.

    Raises:
        ValueError: The stored state is of other parameters, by number, name or shape.
    """
    parameters = {
        name: p
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    }
    name_of = _names_by_number(saved["param_groups"], parameters, model_keys)
    if set(name_of.values()) != set(parameters):
        different = sorted(set(name_of.values()) ^ set(parameters))
        raise ValueError(
            f"the checkpoint's optimizer state is of {len(name_of)} parameters, this model trains "
            f"{len(parameters)}; they differ in {different[0]} and {len(different) - 1} others. "
            "Resume with the options of the run that wrote it, or start anew with --weights"
        )
    number_of = {name: number for number, name in name_of.items()}
    state, groups, count = {}, [], 0
    for group in optimizer.param_groups:
        old = _group_of(saved["param_groups"], number_of[group["names"][0]])
        # How AdamW computes is this process's choice; with what rates and moments, the file's.
        options = {k: v for k, v in old.items() if k not in ("foreach", "fused", "capturable")}
        params = list(range(count, count + len(group["params"])))
        groups.append({**group, **options, "names": group["names"], "params": params})
        for new, name in zip(params, group["names"], strict=True):
            entry = saved["state"].get(number_of[name])
            if entry is None:
                continue
            if entry["exp_avg"].shape != parameters[name].shape:
                raise ValueError(
                    f"the checkpoint's optimizer state of {name} has shape "
                    f"{tuple(entry['exp_avg'].shape)}, the parameter has "
                    f"{tuple(parameters[name].shape)}"
                )
            # Files written before torch 1.12 count steps in plain integers.
            state[new] = {**entry, "step": torch.as_tensor(entry["step"], dtype=torch.float32)}
        count += len(params)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names_by_number(
    groups: list[dict], parameters: Mapping[str, Any], model_keys: Iterable[str]
) -> dict[int, str]:
    numbers = [number for group in groups for number in group["params"]]
    if all("names" in group for group in groups):
        names = [name for group in groups for name in group["names"]]
    else:
        known = [key for key in model_keys if key in parameters]
        names = sorted(known, key=in_backbone)
    if len(names) != len(numbers):
        raise ValueError(
            f"the checkpoint's optimizer state is of {len(numbers)} parameters; "
            f"{len(names)} of this model's trained parameters are in the checkpoint"
        )
    return dict(zip(numbers, names, strict=True))


def _group_of(groups: list[dict], number: int) -> dict:
    return next(group for group in groups if number in group["params"])


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind `error`: torch's zip writer reports a failed write as RuntimeError."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _give_usual_mode(path: str) -> None:
    """Undoes the owner-only mode of temporary files, so that others may read the result."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself durable, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

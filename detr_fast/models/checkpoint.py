"""Reading checkpoints without trusting them, and putting their weights into a model."""

import argparse
import inspect
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .catalogue import ZOO
from .detr import DETR
from .download import cached_download
from .suggestion import did_you_mean

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: state dict, names to tensors on the CPU.
        config: arguments of `build_model` for this model, None where the file does not tell.
        label_map: `LabelMap.to_dict()` of the classes, or None.
        extra: everything else (optimizer, epoch, args, ...).
    """

    model: dict[str, Tensor]
    config: dict[str, Any] | None = None
    label_map: dict | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor when weights were loaded.

    Attributes:
        loaded: names whose values came from the checkpoint.
        reinitialised: names left fresh because their size in the checkpoint differs.
        skipped: names in the checkpoint that the model does not have.
        missing: names in the model that the checkpoint does not have; they keep their values.
    """

    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors"]
        for verb, names in (
            ("re-initialised", self.reinitialised),
            ("skipped, not in the model:", self.skipped),
            ("missing in the checkpoint, kept as they were:", self.missing),
        ):
            if names:
                parts.append(f"{verb} {_listed(names)}")
        return "; ".join(parts)


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Reads a checkpoint of this package, of the original DETR, or a bare state dict.

    Nothing in the file is executed: it is read with `weights_only=True`, and of classes other than
    torch's own only `argparse.Namespace` is accepted, in which the original keeps its options.

    Args:
        source: a path, a URL, or the name of a zoo model with official or shipped weights.

    Returns:
        The content. `config` comes from the file, from the original's options in it, or, for an
        official file under its own name, from the zoo.

    Raises:
        FileNotFoundError: no file there; the sentence says where it looked.
        ValueError: the file is truncated, corrupt, holds no weights, or holds objects that would
            have to be executed to be read.
        ConnectionError: see `cached_download`.
    """
    path = _locate(source)
    content = _read(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint (a dict).")
    if "model" not in content and _is_state_dict(content):
        content = {"model": content}
    state = content.get("model")
    if not _is_state_dict(state):
        raise ValueError(
            f"{path} holds no weights: expected a state dict, or a dict with one under 'model'; "
            f"found the keys {_listed([str(key) for key in content])}."
        )
    extra = {k: v for k, v in content.items() if k not in ("model", "config", "label_map")}
    if isinstance(extra.get("args"), argparse.Namespace):
        extra["args"] = vars(extra["args"])
    state = without_wrapper_prefixes(state)
    config = content.get("config") or _config_from_args(extra.get("args"), state)
    return Checkpoint(
        state, config or _config_from_file_name(path), content.get("label_map"), extra
    )


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = False
) -> LoadReport:
    """Copies weights into a model, converting their dtype and device, and says what it did.

    Prefixes of wrappers ("module.", "_orig_mod.") are removed. The counters
    `num_batches_tracked` of BatchNorm may be absent or in excess: nothing depends on them.

    Args:
        model: a `DETR`, `DETRSegmentation` or `DETRDemo`.
        state_dict: names to tensors.
        strict: every name and every shape must agree. Without it, names may be missing or in
            excess, and the modules whose size follows the data set (`model.resizable`: class head,
            queries) are re-initialised where their size differs.

    Returns:
        The report; re-initialised modules are also logged as a warning.

    Raises:
        ValueError: `strict` is not met; a shape other than a resizable module's differs; or no
            name agrees. The model is then unchanged.
    """
    state = without_wrapper_prefixes(state_dict)
    own = model.state_dict()
    state = {name: state[name] for name in state if name in own or not _is_counter(name)}
    own_names = [name for name in own if name in state or not _is_counter(name)]
    shared = [name for name in own_names if name in state]
    missing = tuple(name for name in own_names if name not in state)
    skipped = tuple(name for name in state if name not in own)
    unequal = [name for name in shared if state[name].shape != own[name].shape]
    if not shared:
        raise ValueError(
            f"none of the {len(state)} tensors of the checkpoint belongs to the model: it has "
            f"{_listed(state)}, the model {_listed(own_names)}."
        )
    fixed = [name for name in unequal if strict or _module_of(name) not in model.resizable]
    if fixed:
        shapes = [f"{n} {tuple(state[n].shape)} -> {tuple(own[n].shape)}" for n in fixed]
        raise ValueError(
            f"the weights do not fit the model (checkpoint -> model): {_listed(shapes)}. Build the "
            "model with the options that the weights were trained with."
        )
    if strict and (missing or skipped):
        raise ValueError(
            f"the weights do not fit the model: missing {_listed(missing) or 'nothing'}; not in "
            f"the model {_listed(skipped) or 'nothing'}."
        )
    fresh = sorted({_module_of(name) for name in unequal})
    loaded = {name: state[name] for name in shared if _module_of(name) not in fresh}
    model.load_state_dict(loaded, strict=False)
    for name in fresh:
        model.get_submodule(name).reset_parameters()
    report = LoadReport(
        tuple(loaded), tuple(n for n in shared if _module_of(n) in fresh), skipped, missing
    )
    if fresh:
        _log.warning("%s: %s", type(model).__name__, report)
    return report


def without_wrapper_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the module inside DistributedDataParallel or `torch.compile`."""
    state = dict(state_dict)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _locate(source: str | Path) -> Path:
    if source in ZOO:
        entry = ZOO[source]
        if entry.url is not None:
            return cached_download(entry.url)
        if entry.shipped is None:
            raise ValueError(
                f"there are no weights of {entry.name}: train it, and give the path of its "
                "checkpoint."
            )
        path = Path(__file__).parent / "weights" / entry.shipped
        if not path.is_file():
            raise FileNotFoundError(
                f"the weights of {entry.name} belong in the package at {path}, and are not there; "
                "install detr_fast again, or build the model with pretrained=False."
            )
        return path
    if isinstance(source, str) and re.match(r"https?://", source):
        return cached_download(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    folder = path if path.is_dir() else path.parent
    where = "that is a folder" if path.is_dir() else "there is no such file"
    if folder.is_dir():
        found = sorted(file.name for file in folder.glob("*.pt*"))
        where += f"; in {folder.resolve()} there is {_listed(found) or 'no .pth or .pt file'}"
    else:
        where += f", and no folder {folder.resolve()}"
    raise FileNotFoundError(
        f"no checkpoint at {path}: {where}. It is no model of the zoo either; "
        f"{did_you_mean(source, ZOO)}."
    )


def _read(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything from within the reader
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and unsafe:
            raise ValueError(
                f"{path} was not loaded: it holds {unsafe[1]}, which would have to be executed to "
                "be read. If you trust whoever wrote it, load it yourself with "
                "torch.load(path, weights_only=False) and save its state dict alone."
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a readable checkpoint, truncated or "
            f"corrupt: {type(error).__name__}. Fetch or write it again."
        ) from error


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _config_from_args(args: Any, state: Mapping[str, Tensor]) -> dict | None:
    """`build_model` arguments out of the options that the original's `main.py` saves."""
    if not isinstance(args, Mapping):
        return None
    known = inspect.signature(DETR.__init__).parameters
    options = {name: value for name, value in args.items() if name in known}
    for name, head in (
        ("detr_resnet50", "class_embed.weight"),
        ("detr_resnet50_panoptic", "detr.class_embed.weight"),
    ):
        if head in state:
            return {"name": name, **options, "num_classes": len(state[head]) - 1}
    return None


def _config_from_file_name(path: Path) -> dict | None:
    """The zoo's arguments for an official file that kept its name."""
    for entry in ZOO.values():
        if entry.url is not None and entry.url.endswith(f"/{path.name}"):
            return {"name": entry.name, **entry.options}
    return None


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _listed(names, most: int = 6) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

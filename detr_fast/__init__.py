"""DETR, complete and fast, and the matcher that every DETR-family project needs.

The public names are resolved on first use, so that `import detr_fast` costs little more than
`import torch, torchvision` and starts nothing: no CUDA context, no compilation, no network.
"""

import importlib

from ._version import __version__

_HOMES = {
    "Detector": "inference.detector",
    "Engine": "inference.engine",
    "HungarianMatcher": "training.matcher",
    "SetCriterion": "training.criterion",
    "build_info": "_extension",
    "build_model": "models.zoo",
    "certified_assignment": "ops.certificate",
    "linear_assignment": "ops.assignment",
    "linear_sum_assignment": "ops.scipy_compat",
    "set_matching": "ops.set_matching",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str):
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

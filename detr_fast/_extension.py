"""Loads the compiled module `detr_fast._C` once, and remembers why it could not.

Loading registers the compiled kernels with torch's dispatcher; without them every operation runs
its reference. Nothing here raises because of the state of the installation: `reason` says what is
wrong and what to do. `DETR_FAST_EXTENSION=0` leaves the module out.
"""

import functools
import importlib
import json
import os
from pathlib import Path
from types import ModuleType

from ._version import __version__

_REINSTALL = "reinstall with `pip install --no-build-isolation .`"


def available() -> bool:
    """Whether the compiled module is loaded; loads it at the first call."""
    return _load()[0] is not None


def reason() -> str | None:
    """Why the compiled module is not loaded, as a sentence with the fix; None where it is."""
    return _load()[1]


def module() -> ModuleType | None:
    """The compiled module, or None where it is not available."""
    return _load()[0]


def build_info() -> dict:
    """What the package was built with, and whether its compiled module is in use.

    Returns:
        A dict with `version`, `available` and `reason` (see `reason()`); where a build left its
        record, `compiled`, `torch` and `python` (versions at build time), `cuda_kernels`,
        `cuda_reason` (why there are none), `cuda_toolkit` and `cuda_arch_list`; and, where the
        module is loaded, its `compiler`, `cxx_standard` (the value of `__cplusplus`), `openmp`,
        `cpu_capability` (the instruction set that the CPU kernels use here) and
        `cpu_inference_dtypes` (those that attention and convolution have kernels for here).
    """
    compiled, why_not = _load()
    info = {"version": __version__, "available": compiled is not None, "reason": why_not}
    recorded = {key: value for key, value in (_record() or {}).items() if key != "reason"}
    return {**recorded, **(compiled.build_info() if compiled else {}), **info}


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    switch = os.environ.get("DETR_FAST_EXTENSION", "")
    if switch not in ("", "1"):
        note = "" if switch == "0" else ", which is neither 0 nor 1"
        return None, f"the compiled module is switched off by DETR_FAST_EXTENSION={switch}{note}."
    why_not = _mismatch(_record())
    if why_not:
        return None, why_not
    try:
        return importlib.import_module(f"{__package__}._C"), None
    except ImportError as error:
        return None, f"the compiled module could not be loaded ({error}); {_REINSTALL}."


def _mismatch(record: dict | None) -> str | None:
    """Why the module described by `record` must not be opened here, decided before it is opened.

    A module built for another torch can fail on an undefined symbol, or load and crash later.
    """
    if record is None:
        return f"there is no readable record of a build beside the package; {_REINSTALL}."
    if not record["compiled"]:
        return f"nothing was compiled when the package was built: {record['reason']}."
    import torch

    if record["torch"] != str(torch.__version__):
        return (
            f"the compiled module was built for torch {record['torch']} and this is torch "
            f"{torch.__version__}; {_REINSTALL}."
        )
    return None


def _record() -> dict | None:
    """The record that the build wrote, None where there is none or it is damaged."""
    try:
        record = json.loads((Path(__file__).parent / "_build_info.json").read_text())
    except (OSError, ValueError):
        return None
    complete = isinstance(record, dict) and {"compiled", "reason", "torch"} <= set(record)
    return record if complete else None

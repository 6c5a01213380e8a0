"""What this machine and installation are, and which implementation of each operation runs here."""

import importlib
import os
import pkgutil
import platform
import shutil
import subprocess
from pathlib import Path

from ._extension import build_info

_KERNEL, _REFERENCE = "extension kernel", "reference"
_TRITON, _TORCH = "Triton kernel", "torch kernel"


def environment() -> dict:
    """Versions, processor, GPUs, how the package was built, and `operations()`; JSON-serialisable.

    Asks the driver for its GPUs, which may start a CUDA context.
    """
    import torch
    import torchvision

    return {
        "detr_fast": build_info()["version"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "torch_cuda": torch.version.cuda,
        "cpu": _cpu(),
        "gpus": _gpus(),
        "driver": _driver(),
        "build": build_info(),
        "operations": operations(),
    }


def operations() -> list[dict]:
    """For every operation, what runs on a CPU and on a GPU, as torch's dispatcher has it.

    Returns:
        One dict an operation: `name`; `cpu` and `cuda`, each "extension kernel", "Triton kernel",
        "torch kernel" or "reference"; and `cpu_slow` and `cuda_slow`, why the faster kernel is not
        there, None where it is.
    """
    import torch

    from . import ops
    from .ops import _library

    for room in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{room.name}")
    build = build_info()
    listed = []
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if not name.startswith("detr_fast::"):
            continue
        entry = {"name": name.removeprefix("detr_fast::")}
        if entry["name"] in _library.TRITON_OPERATIONS:
            installed = _library.triton_is_installed()
            entry.update(cpu=_TORCH, cpu_slow=None, cuda=_TRITON if installed else _TORCH)
            entry["cuda_slow"] = None if installed else "Triton is not installed"
            listed.append(entry)
            continue
        for key in ("CPU", "CUDA"):
            fast = torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
            entry[key.lower()] = _KERNEL if fast else _REFERENCE
            entry[f"{key.lower()}_slow"] = None if fast else _why_slow(key, build)
        listed.append(entry)
    return listed


def _why_slow(key: str, build: dict) -> str:
    if not build["available"]:
        return build["reason"].rstrip(".")
    if key == "CUDA" and not build["cuda_kernels"]:
        return f"built without CUDA kernels: {build['cuda_reason']}"
    return f"the compiled module has no {key} kernel of it"


def _cpu() -> dict:
    import torch

    try:
        # Only Linux on x86 and a few others name the model and its instruction sets there.
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    sets = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_tile"}
    return {
        "name": fields.get("model name", platform.processor()).strip() or platform.machine(),
        "cores": os.cpu_count(),
        "isa": [name for name, flag in sets.items() if flag in flags],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _gpus() -> list[dict]:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_gib": round(gpu.total_memory / 2**30, 1),
        }
        for gpu in found
    ]


def _driver() -> str | None:
    """The version of NVIDIA's driver, None where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None

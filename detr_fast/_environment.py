"""What this machine and installation are, and which implementation of each operation runs here."""

import contextlib
import datetime
import importlib
import importlib.metadata
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
        there, None where it is, and where torch has one of its own.
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
        if entry["name"] in _library.TRITON_OPERATIONS | _library.TORCH_ELSEWHERE:
            compiled = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
            entry.update(cpu=_KERNEL if compiled else _TORCH, cpu_slow=None)
            entry.update(cuda=_TORCH, cuda_slow=None)
            if entry["name"] in _library.TRITON_OPERATIONS:
                installed = _library.triton_is_installed()
                entry["cuda"] = _TRITON if installed else _TORCH
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

    flags = " ".join(_cpuinfo("flags")[:1]).split()
    sets = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_tile"}
    return {
        "name": next(iter(_cpuinfo("model name")), platform.processor()) or platform.machine(),
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
    answers = _ask_nvidia_smi("driver_version")
    return answers[0] if answers else None


def conditions() -> dict:
    """What a measurement depends on beside `environment()`; JSON-serialisable.

    Returns:
        `date` (UTC), `commit` and `uncommitted` (whether tracked files differ from it; both None
        for a package that is not in a git checkout), and `load` of the last minute (None where the
        system does not tell).
    """
    commit, status = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain", "-uno")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "uncommitted": None if status is None else bool(status),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions(*names: str) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def clocks() -> dict[str, str]:
    """Clocks at this moment as far as the system tells them: "cpu", and one entry for each GPU."""
    told = {}
    megahertz = [float(value) for value in _cpuinfo("cpu MHz")]
    if megahertz:
        told["cpu"] = f"{min(megahertz):.0f} to {max(megahertz):.0f} MHz"
    for index, answer in enumerate(_ask_nvidia_smi("clocks.sm,clocks.max.sm,clocks.mem")):
        now, most, memory = (part.strip() for part in answer.split(","))
        told[f"gpu {index}"] = f"{now} (at most {most}), memory {memory}"
    return told


def _ask_nvidia_smi(fields: str) -> list[str]:
    """Comma-separated answers, a line for each GPU; empty where there is no NVIDIA driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []


def _ask_git(*arguments: str) -> str | None:
    """The answer of git about the checkout that this package lies in, None where it is in none."""
    root = Path(__file__).resolve().parents[1]
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _cpuinfo(field: str) -> list[str]:
    """A field of /proc/cpuinfo for each processor; only Linux on x86 and a few others name some."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    return [value.strip() for name, value in pairs if name == field]

"""Builds `detr_fast._C`: CPU kernels always, CUDA kernels where torch and a toolkit allow it.

A missing torch or compiler leaves a pure Python package that says why (`detr-fast env`); an error
in the sources fails the build. Read from the environment: DETR_FAST_CUDA (auto, 1 or 0),
FORCE_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME, CXX. No decision depends on whether a GPU is
visible, except the default list of architectures.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RECORD = "_build_info.json"
CXX_FLAGS = ["-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"]
# A fused multiply-add rounds once where two operations round twice: without this flag the same cost
# would differ in its last bit between a machine with FMA and one without.
CXX_FLAGS += ["-ffp-contract=off"]
# Nobody looks at the floating-point exception flags, for the sake of which GCC would not turn a
# choice between two numbers into vector instructions. No result changes.
CXX_FLAGS += ["-fno-trapping-math"]
# -fmad=false is nvcc's word for the same.
NVCC_FLAGS = ["-O3", "-fmad=false", "-Xptxas", "-warn-spills"]
# The sources are kept clean for Volta and later.
OLDEST_ARCH = (7, 0)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder, its release and the architectures its compiler knows."""

    home: Path
    release: str
    archs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What this build compiles, or why it compiles nothing; written beside the package as JSON."""

    compiled: bool
    reason: str | None = None
    torch: str | None = None
    cuda_kernels: bool = False
    cuda_reason: str | None = None
    cuda_toolkit: str | None = None
    cuda_arch_list: str | None = None
    python: str = platform.python_version()

    def lines(self) -> list[str]:
        if not self.compiled:
            return [f"compiled kernels: none, because {self.reason}"]
        cuda = f"for {self.cuda_arch_list} with toolkit {self.cuda_toolkit}"
        return [
            f"CPU kernels: for torch {self.torch}",
            f"CUDA kernels: {cuda if self.cuda_kernels else self.cuda_reason}",
        ]


def resolve(environ: dict[str, str]) -> Plan:
    """Decides what to compile, without compiling any of it."""
    request = cuda_request(environ)
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = (
            f"torch could not be imported at build time ({error}); install torch first and then "
            "use `pip install --no-build-isolation .`"
        )
        return without_compilation(reason, request)
    broken = compiler_fault(environ)
    if broken:
        return without_compilation(f"no working C++ compiler was found ({broken})", request)
    version = str(torch.__version__)
    sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
    toolkit, reason = resolve_cuda(request, torch.version.cuda, environ)
    if toolkit is None or not sources:
        return Plan(True, torch=version, cuda_reason=reason or "none in this version")
    visible = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    archs = arch_list(toolkit, torch._C._cuda_getArchFlags(), visible, environ)
    return Plan(
        True,
        torch=version,
        cuda_kernels=True,
        cuda_toolkit=f"{toolkit.release} at {toolkit.home}",
        cuda_arch_list=archs,
    )


def without_compilation(reason: str, request: str) -> Plan:
    if request == "1":
        raise SystemExit(f"detr_fast: DETR_FAST_CUDA=1 asks for CUDA kernels, but {reason}.")
    return Plan(False, reason=reason)


def compiler_fault(environ: dict[str, str]) -> str | None:
    """None if a small Python extension compiles and links here, else what went wrong.

    With this settled first, an error that comes later is an error in the sources of detr_fast.
    """
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler

    command = [*shlex.split(environ.get("CXX") or "c++"), "-std=c++17", "-fPIC", "-c"]
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, linked = (str(Path(folder, f"probe.{end}")) for end in ("cpp", "o", "so"))
        Path(source).write_text("#include <Python.h>\n#include <vector>\nstd::vector<int> probe;\n")
        include = f"-I{sysconfig.get_paths()['include']}"
        try:
            done = subprocess.run(
                [*command, include, source, "-o", compiled], capture_output=True, text=True
            )
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                return f"{command[0]}: {(errors or [f'exit status {done.returncode}'])[0].strip()}"
            linker = new_compiler()
            customize_compiler(linker)
            linker.link_shared_object([compiled], linked, target_lang="c++")
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def cuda_request(environ: dict[str, str]) -> str:
    """The value of DETR_FAST_CUDA; FORCE_CUDA=1 is the same as 1 where the former is not set."""
    default = "1" if environ.get("FORCE_CUDA") == "1" else "auto"
    request = environ.get("DETR_FAST_CUDA") or default
    if request not in ("auto", "1", "0"):
        raise SystemExit(f"detr_fast: DETR_FAST_CUDA={request!r} is not one of auto, 1 and 0.")
    return request


def resolve_cuda(
    request: str, torch_cuda: str | None, environ: dict[str, str]
) -> tuple[Toolkit | None, str | None]:
    """The toolkit to build CUDA kernels with, or None and why there is none."""
    if request == "0":
        return None, "DETR_FAST_CUDA=0"
    toolkit, reason = None, "torch is a CPU-only build"
    if torch_cuda:
        toolkit, reason = find_toolkit(environ)
    if toolkit and toolkit.release.split(".")[0] != torch_cuda.split(".")[0]:
        reason = f"the toolkit at {toolkit.home} is CUDA {toolkit.release}, torch's is {torch_cuda}"
        toolkit = None
    if toolkit is None and request == "1":
        raise SystemExit(f"detr_fast: DETR_FAST_CUDA=1 asks for CUDA kernels, but {reason}.")
    return toolkit, reason


def find_toolkit(environ: dict[str, str]) -> tuple[Toolkit | None, str | None]:
    """Looks at CUDA_HOME or CUDA_PATH, else at nvcc on PATH, else in /usr/local/cuda."""
    named = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    nvcc = Path(named, "bin/nvcc") if named else Path(on_path or "/usr/local/cuda/bin/nvcc")
    if not nvcc.is_file():
        looked = "CUDA_HOME" if named else "CUDA_HOME, nvcc on PATH and /usr/local/cuda"
        return None, f"no CUDA toolkit was found (no {nvcc}; looked at {looked})"
    try:
        # The nvcc on PATH can be a wrapper script elsewhere: it is asked where its toolkit is.
        dry = ask(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
        home = Path(re.search(r"\bTOP=(.*)", dry).group(1)).resolve()
        release = re.search(r"release (\d+\.\d+)", ask(nvcc, "--version")).group(1)
        archs = re.findall(r"compute_(\d+)(\d)\b", ask(nvcc, "--list-gpu-arch"))
    except (OSError, subprocess.CalledProcessError, AttributeError) as error:
        return None, f"{nvcc} does not answer as a CUDA compiler does ({error})"
    return Toolkit(home, release, tuple(sorted((int(a), int(b)) for a, b in archs))), None


def ask(nvcc: Path, *arguments: str) -> str:
    done = subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def arch_list(
    toolkit: Toolkit, torch_archs: str, visible: list[tuple[int, int]], environ: dict[str, str]
) -> str:
    """Architectures to compile for, in the form of TORCH_CUDA_ARCH_LIST, which comes first if set.

    Else those of the visible GPUs, and where there is none the oldest of each generation of those
    that torch and the toolkit have, which the others of the generation run too. The last one also
    as PTX, for GPUs that come later.
    """
    named = environ.get("TORCH_CUDA_ARCH_LIST")
    if named and named != "native":
        return named
    of_torch = {(int(a), int(b)) for a, b in re.findall(r"sm_(\d+)(\d)\b", torch_archs)}
    known = [arch for arch in toolkit.archs if arch in of_torch and arch >= OLDEST_ARCH]
    if visible:
        # A GPU newer than all of them runs the PTX of the newest.
        known = sorted({max((a for a in known if a <= gpu), default=gpu) for gpu in visible})
    else:
        known = [min(a for a in known if a[0] == major) for major in sorted({a[0] for a in known})]
    if not known:
        raise SystemExit(
            f"detr_fast: the toolkit at {toolkit.home} and torch ({torch_archs}) have no "
            "architecture in common; set TORCH_CUDA_ARCH_LIST, for example to 9.0."
        )
    return ";".join(f"{major}.{minor}" for major, minor in known) + "+PTX"


def extension(plan: Plan):
    """The setuptools extension of `detr_fast._C` that `plan` describes."""
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension, include_paths

    sources = [ROOT / "csrc/bindings.cpp", *sorted(ROOT.glob("csrc/cpu/*.cpp"))]
    flags = [*CXX_FLAGS, *(f"-isystem{path}" for path in include_paths())]
    # at::parallel_for runs on one thread without it. The library itself is not linked: its symbols
    # come from the one torch uses, so that there is one pool of threads and torch.set_num_threads
    # rules it.
    if torch.backends.openmp.is_available() and sys.platform == "linux":
        flags.append("-fopenmp")
    macros = [("DETR_FAST_TORCH_VERSION", json.dumps(plan.torch))]
    kind = CppExtension
    if plan.cuda_kernels:
        kind = CUDAExtension
        sources += sorted([*ROOT.glob("csrc/cuda/*.cpp"), *ROOT.glob("csrc/cuda/*.cu")])
        macros.append(("DETR_FAST_CUDA_ARCH_LIST", json.dumps(plan.cuda_arch_list)))
    return kind(
        "detr_fast._C",
        [str(source.relative_to(ROOT)) for source in sources],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": flags, "nvcc": NVCC_FLAGS},
        depends=[str(header) for header in sorted(ROOT.glob("csrc/**/*.h"))],
    )


def commands(plan: Plan) -> dict:
    """The setuptools commands that compile and that leave the record of `plan` with the package."""
    builder = build_ext
    if plan.compiled:
        from torch.utils.cpp_extension import BuildExtension as builder

    def write_record(folder: Path):
        (folder / RECORD).write_text(json.dumps(vars(plan), indent=1) + "\n")

    class BuildExt(builder):
        def finalize_options(self):
            super().finalize_options()
            # A module is out of date with another torch too, which the age of the sources does not
            # tell; with ninja this compiles only what changed.
            self.force = True

        def run(self):
            super().run()
            if self.inplace:
                write_record(ROOT / "detr_fast")

    class BuildPy(build_py):
        def run(self):
            package = Path(self.build_lib, "detr_fast")
            if not self.editable_mode:
                # What an earlier build left there, modules since removed and a compiled module for
                # another torch included, is not part of this one.
                shutil.rmtree(package, ignore_errors=True)
            super().run()
            write_record(ROOT / "detr_fast" if self.editable_mode else package)

        def get_source_files(self):
            # A source distribution holds the compiled sources wherever it is made.
            compiled = [str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.[hc]*")]
            return [*super().get_source_files(), *sorted(compiled)]

    return {"build_ext": BuildExt, "build_py": BuildPy}


def main():
    if {"egg_info", "dist_info"} & set(sys.argv):
        plan = Plan(False, reason="only metadata was asked for")
    else:
        plan = resolve(os.environ)
        for line in plan.lines():
            print(f"detr_fast: {line}", flush=True)
    if plan.cuda_kernels:
        # torch reads both when it starts nvcc, CUDA_HOME at the import of its extension builder.
        os.environ["CUDA_HOME"] = plan.cuda_toolkit.partition(" at ")[2]
        os.environ["TORCH_CUDA_ARCH_LIST"] = plan.cuda_arch_list
    setup(
        # Not in pyproject.toml, where old and new setuptools want it in different forms.
        license="Apache-2.0",
        ext_modules=[extension(plan)] if plan.compiled else [],
        cmdclass=commands(plan),
    )


if __name__ == "__main__":
    main()

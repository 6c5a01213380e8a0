"""The package as installed: import, public names, the compiled module's loader, and the build.

The build's decisions are tested by calling the functions of setup.py; the tests that compile
are slow.
"""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from fresh_process import run_python

import detr_fast
from detr_fast import _extension

CHECKOUT = Path(__file__).resolve().parents[1]


def load_setup():
    spec = importlib.util.spec_from_file_location("detr_fast_setup", CHECKOUT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = load_setup()


# Import

OBSERVED_IMPORT = """
import json, sys
import torch, torchvision
started = []
watched = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system")
sys.addaudithook(lambda event, args: started.append(event) if event in watched else None)
before = set(sys.modules)
import detr_fast
{statement}
print(json.dumps({{
    "packages": sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}),
    "started": started,
    "cuda": torch.cuda.is_initialized(),
    "file": detr_fast.__file__,
}}))
"""


def observed_import(statement: str, folder: Path) -> dict:
    """What `import detr_fast` and then `statement` bring to a process that has torchvision."""
    done = run_python(OBSERVED_IMPORT.format(statement=statement), folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_brings_nothing_but_the_package(tmp_path):
    seen = observed_import("", tmp_path)
    assert seen["file"] == detr_fast.__file__
    assert seen["packages"] == ["detr_fast"]
    assert seen["started"] == []
    assert not seen["cuda"]


def test_public_names_resolve_and_start_nothing(tmp_path):
    resolve = "for name in detr_fast.__all__: assert getattr(detr_fast, name)"
    seen = observed_import(resolve, tmp_path)
    assert not {"matplotlib", "pycocotools", "transformers", "timm"} & set(seen["packages"])
    assert seen["started"] == []
    assert not seen["cuda"]


def test_public_names_are_those_agreed():
    assert set(detr_fast.__all__) == {
        "__version__",
        "Detector",
        "Engine",
        "HungarianMatcher",
        "SetCriterion",
        "build_info",
        "build_model",
        "certified_assignment",
        "linear_assignment",
        "linear_sum_assignment",
        "set_matching",
    }
    assert set(detr_fast.__all__) <= set(dir(detr_fast))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'build_modle'"):
        _ = detr_fast.build_modle


# The loader of the compiled module

HERE = str(torch.__version__)


@pytest.fixture
def installed(tmp_path, monkeypatch, request):
    """Makes a copy of the loader in a package of its own and returns that copy's module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("DETR_FAST_EXTENSION", raising=False)

    def make(record: dict | str | None, compiled: bytes | None = None):
        name = f"copy_{abs(hash(request.node.name))}"
        package = tmp_path / name
        package.mkdir()
        for source in ("_extension.py", "_version.py"):
            shutil.copy(Path(_extension.__file__).with_name(source), package)
        (package / "__init__.py").touch()
        if record is not None:
            text = record if isinstance(record, str) else json.dumps(record)
            (package / "_build_info.json").write_text(text)
        if compiled is not None:
            suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
            (package / f"_C{suffix}").write_bytes(compiled)
        return importlib.import_module(f"{name}._extension")

    return make


def record(**changes) -> dict:
    return {**vars(build.Plan(True, torch=HERE, cuda_reason="none in this version")), **changes}


def test_loader_without_a_record(installed):
    loader = installed(None, b"never opened")
    assert not loader.available()
    assert loader.module() is None
    assert "no readable record of a build" in loader.reason()
    assert "pip install --no-build-isolation ." in loader.reason()
    assert loader.build_info() == {
        "version": detr_fast.__version__,
        "available": False,
        "reason": loader.reason(),
    }


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "\xff"])
def test_loader_with_a_damaged_record(installed, text):
    assert "no readable record of a build" in installed(text).reason()


def test_loader_of_a_package_without_compilation_says_why(installed):
    loader = installed(record(compiled=False, reason="torch was not there", torch=None))
    assert not loader.available()
    assert "torch was not there" in loader.reason()
    assert loader.build_info()["compiled"] is False


def test_loader_never_opens_a_module_for_another_torch(installed, monkeypatch):
    loader = installed(record(torch="1.13.1+cu117"), b"never opened")
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"opened {name}"))
    assert not loader.available()
    assert "built for torch 1.13.1+cu117" in loader.reason()
    assert f"this is torch {HERE}" in loader.reason()


@pytest.mark.parametrize("content", [b"", b"not a shared object" * 100])
def test_loader_reports_a_module_that_is_no_library(installed, content):
    loader = installed(record(), content)
    assert not loader.available()
    assert "could not be loaded" in loader.reason()


def test_loader_reports_a_missing_module(installed):
    assert "No module named" in installed(record()).reason()


@pytest.mark.parametrize(("value", "said"), [("0", "=0."), ("off", "=off, which is neither")])
def test_loader_is_switched_off_by_the_environment(installed, monkeypatch, value, said):
    loader = installed(record(), b"never opened")
    monkeypatch.setenv("DETR_FAST_EXTENSION", value)
    assert not loader.available()
    assert f"DETR_FAST_EXTENSION{said}" in loader.reason()


def test_loader_of_this_installation():
    info = detr_fast.build_info()
    assert info["available"] is _extension.available()
    assert (info["reason"] is None) is info["available"]
    if info["available"]:
        assert info["torch"] == HERE
        assert info["compiled"] is True
        assert info["cxx_standard"] >= 201703


# The decisions of the build

TOOLKIT = build.Toolkit(Path("/opt/cuda"), "13.0", ((7, 5), (8, 0), (8, 9), (9, 0), (12, 0)))
TORCH_ARCHS = "sm_75 sm_80 sm_89 sm_90 sm_120"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "auto"),
        ({"DETR_FAST_CUDA": ""}, "auto"),
        ({"DETR_FAST_CUDA": "0"}, "0"),
        ({"DETR_FAST_CUDA": "1"}, "1"),
        ({"FORCE_CUDA": "1"}, "1"),
        ({"FORCE_CUDA": "0"}, "auto"),
        ({"FORCE_CUDA": "1", "DETR_FAST_CUDA": "0"}, "0"),
    ],
)
def test_build_cuda_request(environ, expected):
    assert build.cuda_request(environ) == expected


def test_build_rejects_another_cuda_request():
    with pytest.raises(SystemExit, match="DETR_FAST_CUDA='yes' is not one of auto, 1 and 0"):
        build.cuda_request({"DETR_FAST_CUDA": "yes"})


@pytest.mark.parametrize(
    ("torch_cuda", "found", "why"),
    [
        (None, (TOOLKIT, None), "torch is a CPU-only build"),
        ("13.0", (None, "no CUDA toolkit was found"), "no CUDA toolkit was found"),
        ("12.8", (TOOLKIT, None), "the toolkit at /opt/cuda is CUDA 13.0, torch's is 12.8"),
    ],
)
def test_build_without_cuda_says_why_and_is_an_error_on_request(
    monkeypatch, torch_cuda, found, why
):
    monkeypatch.setattr(build, "find_toolkit", lambda environ: found)
    assert build.resolve_cuda("auto", torch_cuda, {}) == (None, why)
    with pytest.raises(SystemExit, match=f"DETR_FAST_CUDA=1 asks for CUDA kernels, but {why}"):
        build.resolve_cuda("1", torch_cuda, {})


@pytest.mark.parametrize("request_", ["auto", "1"])
def test_build_with_cuda_needs_no_gpu(monkeypatch, request_):
    monkeypatch.setattr(build, "find_toolkit", lambda environ: (TOOLKIT, None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked for a GPU"))
    assert build.resolve_cuda(request_, "13.1", {}) == (TOOLKIT, None)
    assert build.resolve_cuda("0", "13.1", {}) == (None, "DETR_FAST_CUDA=0")


@pytest.mark.parametrize(
    ("visible", "environ", "expected"),
    [
        ([], {}, "7.5;8.0;9.0;12.0+PTX"),
        ([(9, 0)], {}, "9.0+PTX"),
        ([(9, 0), (9, 0), (8, 9)], {}, "8.9;9.0+PTX"),
        ([(8, 6)], {}, "8.0+PTX"),
        ([(12, 1)], {}, "12.0+PTX"),
        ([(9, 0)], {"TORCH_CUDA_ARCH_LIST": "7.0;8.6"}, "7.0;8.6"),
        ([(9, 0)], {"TORCH_CUDA_ARCH_LIST": "native"}, "9.0+PTX"),
    ],
)
def test_build_architectures(visible, environ, expected):
    assert build.arch_list(TOOLKIT, TORCH_ARCHS, visible, environ) == expected


def test_build_without_a_common_architecture_is_an_error():
    with pytest.raises(SystemExit, match="no architecture in common; set TORCH_CUDA_ARCH_LIST"):
        build.arch_list(TOOLKIT, "sm_50 sm_60", [], {})


FAKE_NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 12.8, V12.8.93" ;;
  --list-gpu-arch) printf 'compute_70\\ncompute_90\\ncompute_120\\n' ;;
  --dryrun) echo "#\\$ TOP={top}" >&2 ;;
esac
"""


def write_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_build_asks_a_wrapped_nvcc_for_its_toolkit(tmp_path):
    home = tmp_path / "cuda"
    home.mkdir()
    nvcc = write_executable(tmp_path / "wrap/bin/nvcc", FAKE_NVCC.format(top=home / "bin/.."))
    expected = build.Toolkit(home, "12.8", ((7, 0), (9, 0), (12, 0)))
    (home / "bin").mkdir()
    assert build.find_toolkit({"PATH": f"{nvcc.parent}:{os.environ['PATH']}"}) == (expected, None)
    assert build.find_toolkit({"CUDA_HOME": str(tmp_path / "wrap")}) == (expected, None)


def test_build_with_a_wrong_cuda_home_does_not_look_elsewhere(tmp_path):
    toolkit, reason = build.find_toolkit({**os.environ, "CUDA_HOME": str(tmp_path)})
    assert toolkit is None
    assert f"no {tmp_path}/bin/nvcc" in reason


def test_build_with_a_broken_nvcc_says_so(tmp_path):
    write_executable(tmp_path / "bin/nvcc", "#!/bin/sh\nexit 3\n")
    toolkit, reason = build.find_toolkit({"CUDA_HOME": str(tmp_path)})
    assert toolkit is None
    assert "does not answer as a CUDA compiler does" in reason


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_build_accepts_a_working_compiler():
    assert build.compiler_fault({}) is None


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false", "true"])
def test_build_without_a_working_compiler_compiles_nothing(monkeypatch, compiler):
    plan = build.resolve({"CXX": compiler, "DETR_FAST_CUDA": "auto"})
    assert not plan.compiled
    assert "no working C++ compiler was found" in plan.reason
    with pytest.raises(SystemExit, match="asks for CUDA kernels, but no working C\\+\\+ compiler"):
        build.resolve({"CXX": compiler, "DETR_FAST_CUDA": "1"})


# Builds


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of what the build reads, without what earlier builds left."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, tmp_path)
    shutil.copytree(CHECKOUT / "csrc", tmp_path / "csrc")
    leftovers = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__", "*.pth")
    shutil.copytree(CHECKOUT / "detr_fast", tmp_path / "detr_fast", ignore=leftovers)
    return tmp_path


def run_setup(tree: Path, *arguments: str, before: str = "", **environ: str):
    """Runs setup.py in a process of its own, after the statement `before`."""
    code = f"import runpy, sys; sys.argv[0] = 'setup.py'; {before}\n"
    code += "runpy.run_path('setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tree,
        capture_output=True,
        text=True,
        env={**os.environ, "MAX_JOBS": "2", **environ},
    )


def wheel_of(tree: Path) -> zipfile.ZipFile:
    (wheel,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.parametrize(
    ("before", "environ", "why"),
    [
        ("sys.modules['torch'] = None", {}, "torch could not be imported at build time"),
        ("", {"CXX": "/nowhere/c++"}, "no working C++ compiler was found (FileNotFoundError"),
    ],
)
def test_wheel_without_compilation_is_pure_and_records_why(tree, before, environ, why):
    stale = tree / "build/lib/detr_fast"
    stale.mkdir(parents=True)
    (stale / "_C.so").touch()
    (stale / "removed.py").touch()
    done = run_setup(tree, "bdist_wheel", before=before, **environ)
    assert done.returncode == 0, done.stderr
    assert f"detr_fast: compiled kernels: none, because {why}" in done.stdout
    wheel = wheel_of(tree)
    assert wheel.filename.endswith("-py3-none-any.whl")
    names = {Path(name).name for name in wheel.namelist()}
    assert {"__init__.py", "_build_info.json", "entry_points.txt", "val2017_sizes.json"} <= names
    assert not {"_C.so", "removed.py"} & names
    written = json.loads(wheel.read("detr_fast/_build_info.json"))
    assert written["compiled"] is False
    assert why in written["reason"]


def test_build_fails_where_cuda_is_requested_and_torch_is_missing(tree):
    done = run_setup(tree, "build", before="sys.modules['torch'] = None", DETR_FAST_CUDA="1")
    assert done.returncode == 1
    assert "DETR_FAST_CUDA=1 asks for CUDA kernels, but torch could not" in done.stderr
    assert not (tree / "build").exists()


def test_source_distribution_holds_the_sources(tree):
    done = run_setup(tree, "sdist", before="sys.modules['torch'] = None")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tree / "unpacked")
    (unpacked,) = (tree / "unpacked").iterdir()
    sources = {path.relative_to(tree) for path in (tree / "csrc").rglob("*.[hc]*")}
    assert sources == {path.relative_to(unpacked) for path in unpacked.glob("csrc/**/*.[hc]*")}
    assert (unpacked / "detr_fast/inference/benchmark/val2017_sizes.json").is_file()


needs_compiler = pytest.mark.skipif(
    build.compiler_fault(os.environ) is not None, reason="needs a working C++ compiler"
)


@pytest.mark.slow
@needs_compiler
def test_error_in_the_sources_fails_the_build(tree):
    with open(tree / "csrc/bindings.cpp", "a") as source:
        source.write('#error "a fault of ours"\n')
    done = run_setup(tree, "bdist_wheel")
    assert done.returncode != 0
    assert "a fault of ours" in done.stdout + done.stderr
    assert not (tree / "dist").exists()


@pytest.mark.slow
@needs_compiler
def test_compiled_wheel_and_what_a_second_build_does_again(tree):
    first = run_setup(tree, "bdist_wheel", DETR_FAST_CUDA="0")
    assert first.returncode == 0, first.stderr
    assert "[-W" not in first.stdout + first.stderr
    wheel = wheel_of(tree)
    written = json.loads(wheel.read("detr_fast/_build_info.json"))
    assert (written["compiled"], written["torch"]) == (True, HERE)
    assert written["cuda_reason"] == "DETR_FAST_CUDA=0"
    assert any(Path(name).name.startswith("_C.") for name in wheel.namelist())
    shutil.rmtree(tree / "dist")
    second = run_setup(tree, "bdist_wheel", DETR_FAST_CUDA="0")
    assert "ninja: no work to do" in second.stdout
    assert sorted(wheel_of(tree).namelist()) == sorted(wheel.namelist())


TRIVIAL_CU = "__global__ void add_one(float* x) { x[threadIdx.x] += 1.0f; }\n"


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(
    build.resolve_cuda("auto", torch.version.cuda, os.environ)[0] is None,
    reason="needs a CUDA toolkit and a torch for the same CUDA",
)
@pytest.mark.parametrize("archs", ["9.0", None])
def test_cuda_kernels_are_built_without_a_gpu(tree, archs):
    (tree / "csrc/cuda").mkdir(exist_ok=True)
    (tree / "csrc/cuda/trivial.cu").write_text(TRIVIAL_CU)
    environ = {"CUDA_VISIBLE_DEVICES": "", **({"TORCH_CUDA_ARCH_LIST": archs} if archs else {})}
    done = run_setup(tree, "build_ext", "--inplace", **environ)
    assert done.returncode == 0, done.stderr
    written = json.loads((tree / "detr_fast/_build_info.json").read_text())
    assert written["cuda_kernels"] is True
    assert archs in (written["cuda_arch_list"], None)
    assert f"detr_fast: CUDA kernels: for {written['cuda_arch_list']}" in done.stdout
    code = "import detr_fast, json; print(json.dumps(detr_fast.build_info()))"
    told = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    info = json.loads(told.stdout)
    assert info["available"], info["reason"]
    assert info["cuda_kernels"] is True
    assert info["cuda_arch_list"] == written["cuda_arch_list"]


def test_no_two_sources_compile_to_one_object():
    """`a.cpp` and `a.cu` in one folder would, and only a build with CUDA would notice."""
    sources = [*CHECKOUT.glob("csrc/**/*.cpp"), *CHECKOUT.glob("csrc/**/*.cu")]
    stems = [source.with_suffix("") for source in sources]
    assert stems
    assert len(stems) == len(set(stems))

"""The command line: its strict parser, the handling of errors, and `detr-fast env`."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from fresh_process import run_python

import detr_fast
from detr_fast import _environment, _extension
from detr_fast.cli import env
from detr_fast.cli.main import VERBS, build_parser, main
from detr_fast.cli.parser import Parser, did_you_mean


def fails(parser: Parser, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(list(arguments))
    assert stopped.value.code == 2


# Parser


@pytest.fixture
def parser() -> Parser:
    """A command with one verb that has an argument of each kind."""
    parser = Parser(prog="tool")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    train = verbs.add_parser("train")
    train.add_argument("source")
    train.add_argument("--threshold", type=float, default=0.5, help="least score")
    train.add_argument("--lr_backbone", type=float, default=1e-5)
    train.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    train.add_argument("--quiet", action="store_true", help="print less")
    return parser


def test_parser_takes_what_it_knows(parser):
    args = parser.parse_args(["train", "images", "--threshold=-1", "--lr_backbone", "1", "--quiet"])
    assert (args.source, args.threshold, args.lr_backbone, args.quiet) == ("images", -1, 1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "x", "--treshold", "1"], "--treshold: did you mean --threshold?"),
        (["train", "x", "--treshold=1"], "--treshold: did you mean --threshold?"),
        (["train", "--treshold", "1"], "--treshold: did you mean --threshold?"),
        (["train", "x", "--lr-backbone", "1"], "--lr-backbone: did you mean --lr_backbone?"),
        (["train", "x", "--thresh", "1"], "--thresh: did you mean --threshold?"),
        (["train", "x", "--zzzz"], "tool train: error: unknown argument --zzzz\n"),
        (["train", "x", "y"], "tool train: error: unexpected argument y\n"),
        (["train", "x", "-q"], "tool train: error: unexpected argument -q\n"),
        (["train", "--", "--x", "y"], "tool train: error: unexpected argument y\n"),
        (["train"], "tool train: error: the following arguments are required: source\n"),
        (
            ["train", "x", "--threshold", "high"],
            "argument --threshold: invalid float value: 'high'",
        ),
        (
            ["train", "x", "--optimizer", "adam"],
            "'adam' is not a choice of --optimizer: did you mean adamw? (adamw, sgd)",
        ),
        (
            ["trian", "x"],
            "tool: error: 'trian' is not a choice of VERB: did you mean train? (train)",
        ),
        (["--quite", "train", "x"], "tool: error: unknown argument --quite\n"),
        (["--hepl"], "tool: error: unknown argument --hepl: did you mean --help?\n"),
        ([], "tool: error: the following arguments are required: VERB\n"),
    ],
)
def test_parser_rejects_the_rest_with_a_suggestion(parser, capsys, arguments, said):
    fails(parser, *arguments)
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.endswith("--help` for what it takes\n")
    assert captured.err.count("\n") == 2
    assert captured.out == ""


def test_parser_takes_what_follows_two_dashes_as_it_is(parser):
    assert parser.parse_args(["train", "--", "--threshold"]).source == "--threshold"


@pytest.mark.parametrize("arguments", [["--debug", "train", "x"], ["train", "x", "--debug"]])
def test_parser_takes_debug_before_and_after_the_verb(parser, arguments):
    assert parser.parse_args(arguments).debug is True


def test_parser_help_shows_defaults_that_say_something(parser, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["train", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "least score (default: 0.5)" in shown
    assert "print less\n" in shown


def test_did_you_mean_is_silent_where_nothing_is_near():
    assert did_you_mean("zzz", ["train", "eval"]) == ""


# Command


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"detr-fast {detr_fast.__version__}\n"


def test_help_lists_every_verb_with_a_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    described = {words[0] for words in lines if len(words) == 2}
    assert set(VERBS) <= described


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(capsys, verb):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"usage: detr-fast {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_verb_rejects_an_unknown_argument(capsys, verb):
    fails(build_parser(), verb, "--no_such_argument")
    assert "unknown argument --no_such_argument" in capsys.readouterr().err


def test_help_needs_no_torch_and_nothing_heavy(tmp_path):
    heavy = ("torch", "torchvision", "numpy", "scipy", "PIL", "matplotlib", "pycocotools", "yaml")
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"
    code += "from detr_fast.cli.main import main\nmain(['--help'])"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: detr-fast" in done.stdout


@pytest.fixture
def env_raises(monkeypatch):
    """Makes the env verb raise what it is given."""

    def arrange(error: BaseException):
        def run(args):
            raise error

        monkeypatch.setattr(env, "run", run)

    monkeypatch.delenv("DETR_FAST_DEBUG", raising=False)
    return arrange


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("boxes of image 17 reach 612.0."), "boxes of image 17 reach 612.0."),
        (FileNotFoundError("looked for A; found B"), "looked for A; found B"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ValueError(), "ValueError"),
    ],
)
def test_error_of_the_user_is_one_line(env_raises, capsys, error, said):
    env_raises(error)
    assert main(["env"]) == 1
    assert capsys.readouterr().err == f"detr-fast: error: {said}\n"


@pytest.mark.parametrize(("arguments", "variable"), [(["--debug"], "0"), ([], "1")])
def test_debug_shows_the_traceback_as_well(env_raises, monkeypatch, capsys, arguments, variable):
    monkeypatch.setenv("DETR_FAST_DEBUG", variable)
    env_raises(ValueError("wrong"))
    assert main(["env", *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("detr-fast: error: wrong\n")


def test_fault_of_the_program_keeps_its_traceback(env_raises):
    env_raises(TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        main(["env"])


def test_interrupt_exits_with_130(env_raises, capsys):
    env_raises(KeyboardInterrupt())
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "detr-fast: interrupted\n"


def test_reader_that_leaves_early_is_no_traceback(tmp_path):
    code = "import os, sys; from detr_fast.cli import env, main\n"
    code += "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
    code += "env.run = lambda args: print('x' * 10**6) or 0\nsys.exit(main.main(['env']))"
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


# env

TRITON_OPERATIONS = {"attention", "attention_backward"}
TORCH_ELSEWHERE = {
    f"{kind}_convolution{in_place}" for kind in ("pointwise", "winograd") for in_place in ("", "_")
}
OPERATIONS = {"linear_assignment", "matching_cost", *TRITON_OPERATIONS, *TORCH_ELSEWHERE}


def test_env_says_what_the_dispatcher_does(capsys):
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["torch"] == str(torch.__version__)
    assert report["build"] == detr_fast.build_info()
    listed = {entry["name"]: entry for entry in report["operations"]}
    assert set(listed) >= OPERATIONS
    triton = {name: listed.pop(name) for name in sorted(TRITON_OPERATIONS)}
    for name, entry in triton.items():
        kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"detr_fast::{name}", "CUDA")
        assert entry["cuda"] == ("Triton kernel" if kernel else "torch kernel")
        assert (entry["cuda_slow"] is None) is kernel
        compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"detr_fast::{name}", "CPU")
        assert entry["cpu"] == ("extension kernel" if compiled else "torch kernel")
        assert entry["cpu_slow"] is None
    for name in sorted(TORCH_ELSEWHERE):
        entry = listed.pop(name)
        compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"detr_fast::{name}", "CPU")
        assert entry["cpu"] == ("extension kernel" if compiled else "torch kernel")
        assert entry["cuda"] == "torch kernel"
        assert entry["cpu_slow"] is entry["cuda_slow"] is None
    for name, entry in listed.items():
        for key in ("CPU", "CUDA"):
            kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"detr_fast::{name}", key)
            assert entry[key.lower()] == ("extension kernel" if kernel else "reference")
            assert (entry[f"{key.lower()}_slow"] is None) is kernel


def test_env_text_names_every_operation_and_every_reason(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    for entry in _environment.operations():
        assert entry["name"] in shown
        for device in ("cpu", "cuda"):
            assert (entry[f"{device}_slow"] or "") in shown
    assert (_extension.reason() or "in use") in shown


def test_env_without_the_extension_says_why_each_operation_is_slow(tmp_path):
    code = "from detr_fast.cli.main import main; main(['env', '--json'])"
    done = run_python(code, tmp_path, DETR_FAST_EXTENSION="0")
    assert done.returncode == 0, done.stderr
    operations = json.loads(done.stdout)["operations"]
    assert {entry["name"] for entry in operations} >= OPERATIONS
    for entry in operations:
        if entry["name"] in TRITON_OPERATIONS | TORCH_ELSEWHERE:
            continue
        assert entry["cpu"] == entry["cuda"] == "reference"
        assert "DETR_FAST_EXTENSION=0" in entry["cpu_slow"]
        assert "DETR_FAST_EXTENSION=0" in entry["cuda_slow"]


BUILT = {
    "available": True,
    "reason": None,
    "compiler": "gcc 12.2.0",
    "cxx_standard": 201703,
    "openmp": True,
    "cpu_capability": "avx512",
    "cpu_inference_dtypes": ["float32", "bfloat16"],
    "torch": "2.11.0",
    "cuda_kernels": True,
    "cuda_reason": None,
    "cuda_arch_list": "9.0+PTX",
    "cuda_toolkit": "13.0 at /usr/local/cuda",
}


def test_env_text_of_a_machine_with_a_gpu():
    kernel = {"cpu": "extension kernel", "cpu_slow": None}
    report = {
        "detr_fast": "0.1.0",
        "python": "3.11.7",
        "platform": "Linux",
        "torch": "2.11.0",
        "torch_cuda": "13.0",
        "torchvision": "0.26.0",
        "cpu": {"name": "Xeon", "cores": 2, "isa": [], "torch_capability": "AVX2", "threads": 2},
        "gpus": [{"name": "H200", "capability": "9.0", "memory_gib": 139.8}],
        "driver": "580.1",
        "build": BUILT,
        "operations": [
            {"name": "a", **kernel, "cuda": "extension kernel", "cuda_slow": None},
            {"name": "b", **kernel, "cuda": "reference", "cuda_slow": "no kernel"},
            {"name": "c", **kernel, "cuda": "reference", "cuda_slow": "no kernel"},
        ],
    }
    shown = env.render(report)
    assert "H200, sm 9.0, 139.8 GiB" in shown
    assert "in use; gcc 12.2.0, C++17, OpenMP, torch 2.11.0" in shown
    assert "CUDA kernels for 9.0+PTX, toolkit 13.0 at /usr/local/cuda" in shown
    assert shown.endswith("slow on a GPU: b, c (no kernel)")


# README


def _readme_commands() -> list[list[str]]:
    """The arguments of every `detr-fast` in the README's shell blocks and inline commands."""
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" # ")[0] for block in blocks for line in block.splitlines()]
    lines += [span for span in re.findall(r"`([^`\n]+)`", text) if span.startswith("detr-fast ")]
    starts = ("detr-fast ", "-m detr_fast ")
    return [
        shlex.split(command.partition(start)[2])
        for line in lines
        for command in line.split("&&")
        for start in starts
        if start in command
    ]


@pytest.mark.parametrize("arguments", _readme_commands(), ids=" ".join)
def test_the_commands_of_the_readme_are_understood(arguments):
    build_parser().parse_args(arguments)


def test_the_readme_shows_the_main_verbs():
    assert {"demo", "env", "eval", "predict", "train"} <= {a[0] for a in _readme_commands()}

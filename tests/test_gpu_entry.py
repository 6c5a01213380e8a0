"""benchmarks/gpu without a GPU: its plan, its parts on a CPU, its limits of time, its report."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gpu", reason="the folder benchmarks is not beside that of the tests")

from gpu import bench, cli, part, record, report, small_kernels, steps, targets
from gpu.part import OURS, Case, Measurement
from gpu.setting import Setting

ROOT = Path(__file__).resolve().parents[1]


def planned(name: str, device: str) -> list[Case]:
    return importlib.import_module(f"gpu.parts.{name}").cases(Setting(device))


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bench.SHARES)
def test_planning_touches_no_device_and_names_no_row_twice(name):
    for device in ("cuda", "cpu"):
        rows = [(case.what, case.who) for case in planned(name, device)]
        assert rows
        assert len(set(rows)) == len(rows)


def test_every_target_is_one_of_a_planned_row_of_ours():
    whats = {
        case.what for name in bench.SHARES for case in planned(name, "cuda") if case.who == OURS
    }
    assert set(targets.TARGETS) <= whats


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["assignment", "matching", "criterion"])
def test_a_part_measures_everything_it_planned(name, tmp_path):
    file = tmp_path / f"{name}.jsonl"
    part.run_part(name, Setting("cpu"), 60, file)
    rows, _ = part.read_part(file, "the process did not end")
    assert [(row["what"], row["who"]) for row in rows] == [
        (case.what, case.who) for case in planned(name, "cpu")
    ]
    for row in rows:
        assert row["status"] in (part.MEASURED, part.ABSENT), row
        assert row["who"] != OURS or row["status"] == part.MEASURED
        assert row["status"] == part.ABSENT or row["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ceilings", "attention", "inference", "training"])
def test_a_large_part_measures_everything_it_planned(name, tmp_path):
    folder = steps.Steps(tmp_path, "cpu", 600)
    rows, _ = bench.bench(folder, [name])
    assert report.rows_passed(rows), report.measurements_table(rows)
    assert all(row["status"] == part.MEASURED for row in rows if row["who"] == OURS)


def cases_of(monkeypatch, *measures) -> None:
    """Makes a part "made_up" of them."""
    module = type(sys)("gpu.parts.made_up")
    module.cases = lambda setting: [
        Case(str(i), OURS, measure) for i, measure in enumerate(measures)
    ]
    monkeypatch.setitem(sys.modules, "gpu.parts.made_up", module)


def fails(error: Exception):
    def measure():
        raise error

    return measure


def test_whatever_becomes_of_a_case_the_others_are_measured(monkeypatch, tmp_path):
    cases_of(
        monkeypatch,
        fails(RuntimeError("wrong\nin detail")),
        fails(ImportError("not installed")),
        fails(part.UnavailableError("no kernel")),
        lambda: Measurement(2.0, images=4),
    )
    part.run_part("made_up", Setting("cpu"), 60, tmp_path / "made_up.jsonl")
    rows, _ = part.read_part(tmp_path / "made_up.jsonl", "")
    assert [(row["status"], row.get("note")) for row in rows] == [
        (part.FAILED, "RuntimeError: wrong"),
        (part.ABSENT, "not installed"),
        (part.ABSENT, "no kernel"),
        (part.MEASURED, None),
    ]
    assert not report.rows_passed(rows)
    assert report.rows_passed(rows[1:])


def test_a_model_that_fails_is_tried_once_for_all_its_rows(monkeypatch, tmp_path):
    inference = importlib.import_module("gpu.parts.inference")
    tried = []

    def measure(names, *_):
        tried.append(names[0])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(inference, "measure", measure)
    inference._outcome.cache_clear()
    rows = inference._rows(Setting("cpu"), "detr_resnet50", "some work", 1)
    cases_of(monkeypatch, *(row.measure for row in rows))
    part.run_part("made_up", Setting("cpu"), 60, tmp_path / "made_up.jsonl")
    written, _ = part.read_part(tmp_path / "made_up.jsonl", "")
    assert [row["note"] for row in written] == ["RuntimeError: out of memory"] * len(rows)
    assert tried == ["detr_resnet50"]
    inference._outcome.cache_clear()


def test_cases_beyond_the_time_are_told(monkeypatch, tmp_path):
    def slow():
        time.sleep(0.1)
        return Measurement(0.1)

    cases_of(monkeypatch, slow, slow)
    part.run_part("made_up", Setting("cpu"), 0.05, tmp_path / "made_up.jsonl")
    rows, _ = part.read_part(tmp_path / "made_up.jsonl", "")
    assert [row["status"] for row in rows] == [part.MEASURED, part.NOT_RUN]


def test_a_process_that_was_ended_leaves_its_rows_and_the_plan(monkeypatch, tmp_path):
    file = tmp_path / "made_up.jsonl"
    cases_of(monkeypatch, lambda: Measurement(1.0), lambda: Measurement(1.0))
    part.run_part("made_up", Setting("cpu"), 60, file)
    first_two, rest = file.read_text().splitlines(keepends=True)[:2], '{"part": "made'
    file.write_text("".join(first_two) + rest)
    rows, clocks = part.read_part(file, "not done after 5 s")
    assert [(row["status"], row.get("note")) for row in rows] == [
        (part.MEASURED, None),
        (part.NOT_RUN, "not done after 5 s"),
    ]
    assert clocks == {}
    rows, _ = part.read_part(tmp_path / "never_begun.jsonl", "FAILED")
    assert [(row["part"], row["status"]) for row in rows] == [("never_begun", part.NOT_RUN)]


# --- the report -----------------------------------------------------------------------------------


def measured(what: str, seconds: float, who: str = OURS, name: str = "some", **counts) -> dict:
    row = {"part": name, "what": what, "who": who, "status": part.MEASURED}
    return row | vars(Measurement(seconds, **counts))


def test_figures_stand_beside_floor_and_target():
    what = "detr_resnet50, 32 x 800 x 1066"
    rows = [
        measured(report.COPY, 1.0, "torch", "ceilings", bytes=4e12),
        measured(f"{report.PRODUCT}, float16", 1.0, "torch", "ceilings", flops=5e14),
        measured(f"{report.PRODUCT}, bfloat16", 1.0, "torch", "ceilings", flops=6e14),
        measured(what, 0.032, images=32, bytes=4e9, flops=6e12),
        measured(what, 0.016, images=32, floor_seconds=0.004),
        measured(what, 0.064, "a peer", images=32),
        {"part": "some", "what": what, "who": "other", "status": part.ABSENT, "note": "is away"},
    ]
    report.add_comparison(rows)
    assert rows[3]["figures"]["images/s"] == pytest.approx(1000)
    assert rows[3]["floor_ms"] == pytest.approx(10)
    assert rows[4]["floor_ms"] == pytest.approx(4)
    assert "missed" in rows[3]["target"]
    assert "met" in rows[4]["target"]
    assert rows[5]["target"] == ""
    table = report.measurements_table(rows)
    assert "| 32 | 1000 images/s" in table
    assert "| 10 | 3.2 | at least 1500 images/s: missed, 0.67 of it |" in table
    assert "absent: is away" in table
    assert report.summary(rows) == "6 measured, 1 absent; 1 targets missed"


def test_without_ceilings_there_is_no_floor():
    rows = [measured("linear_assignment, 208 x 300 x 100", 1e-4, bytes=1e6)]
    report.add_comparison(rows)
    assert rows[0]["floor_ms"] is None
    assert "at most 0.1 ms: met, 1.00 of it" in report.measurements_table(rows)


# --- steps ----------------------------------------------------------------------------------------


def test_steps_end_in_time_and_say_what_became_of_them(tmp_path):
    made = steps.Steps(tmp_path, "cpu", 60)
    assert made.run("good", [sys.executable, "-c", "print('told')"])
    assert not made.run("bad", [sys.executable, "-c", "raise SystemExit(3)"])
    assert not made.run("long", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    over = steps.Steps(tmp_path, "cpu", 0)
    assert not over.run("late", [sys.executable, "-c", ""])
    outcomes = [each["outcome"] for each in (*made.outcomes, *over.outcomes)]
    assert outcomes == [
        steps.PASSED,
        "FAILED, exit status 3: see bad.log",
        "FAILED, not done after 0 s: see long.log",
        "NOT RUN: the time of this subcommand was over",
    ]
    assert (tmp_path / "good.log").read_text() == "told\n"


class Recorded(steps.Steps):
    """Steps that run nothing."""

    def __init__(self, folder: Path, device: str):
        super().__init__(folder, device, 60)
        self.commands: dict[str, tuple[str, dict]] = {}

    def run(self, step, command, limit=None, **environ):
        self.commands[step] = (" ".join(map(str, command)), environ)
        return self.note(step, steps.PASSED)


def test_on_a_gpu_the_extension_is_built_with_its_kernels_and_looked_at(tmp_path):
    made = Recorded(tmp_path, "cuda")
    steps.build(made)
    command, environ = made.commands["build"]
    assert command.endswith("setup.py build_ext --inplace")
    assert environ == {"DETR_FAST_CUDA": "1"}
    assert made.commands["environment"][0].endswith("environment --device cuda")


def test_what_a_gpu_lacks_is_told():
    operation = {"name": "attention", "cuda": "Triton kernel", "cuda_slow": None}
    build = {"available": True, "reason": None, "cuda_kernels": True}
    about = {"gpus": [{"name": "one"}], "build": build, "operations": [operation]}
    assert record.shortcomings(about, "cuda") == []
    lacking = {
        "gpus": [],
        "build": {"available": True, "cuda_kernels": False, "cuda_reason": "no toolkit"},
        "operations": [{"name": "attention", "cuda": "torch kernel", "cuda_slow": "no Triton"}],
    }
    assert record.shortcomings(lacking, "cpu") == []
    assert record.shortcomings(lacking, "cuda") == [
        "There is no GPU.",
        "The extension has no CUDA kernels: no toolkit.",
        "attention has no Triton kernel: no Triton.",
    ]
    broken = about | {"build": {"available": False, "reason": "It could not be loaded."}}
    assert record.shortcomings(broken, "cuda") == ["It could not be loaded."]


def test_what_is_there_is_told(capsys):
    assert cli.main(["environment", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["operations"]


def test_on_a_gpu_every_test_of_a_kernel_is_run_and_its_want_is_a_failure(tmp_path):
    made = Recorded(tmp_path, "cuda")
    steps.test(made)
    for file in ("test_cuda", "test_cuda_engine", "test_zero_outside"):
        command, _ = made.commands[file]
        assert "-m cuda " in command
        assert command.endswith(f"tests/{file}.py")
    assert made.commands["test_attention_kernels"][0].endswith(steps.ATTENTION_TESTS)
    assert list(made.commands)[-1] == "other_tests"
    assert all(
        environ["DETR_FAST_REQUIRE_GPU"] == "1"
        for step, (_, environ) in made.commands.items()
        if step != "environment"
    )


@pytest.mark.parametrize("run", [steps.test, steps.sanitize])
def test_one_that_hangs_leaves_the_others_their_time(run, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "_sanitizer", lambda: "compute-sanitizer")
    hanging = Recorded(tmp_path, "cuda")
    passed, spent = hanging.run, []

    def hang(step, command, limit=None, **environ):
        if step != "environment":
            spent.append(limit or hanging.left())
            hanging._deadline -= spent[-1]
        return passed(step, command, limit, **environ)

    monkeypatch.setattr(hanging, "run", hang)
    run(hanging)
    assert len(spent) > 5
    assert min(spent) > 0
    assert spent[0] < 0.6 * 60


@pytest.mark.parametrize(("found", "options"), [(None, []), ("xdist", ["-n"])])
def test_other_tests_run_in_parallel_where_pytest_can(found, options, monkeypatch):
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: found)
    assert steps._in_parallel()[:1] == options


def test_on_a_gpu_every_kernel_goes_through_every_sanitizer(tmp_path, monkeypatch):
    made = Recorded(tmp_path, "cuda")
    monkeypatch.setattr(steps, "_sanitizer", lambda: "compute-sanitizer")
    steps.sanitize(made)
    assert len(made.commands) == len(steps.TOOLS) * len(steps.PROGRAMS)
    assert all("--error-exitcode" in command for command, _ in made.commands.values())
    monkeypatch.setattr(steps, "_sanitizer", lambda: None)
    none = Recorded(tmp_path, "cuda")
    steps.sanitize(none)
    assert not none.commands
    assert all("NOT RUN" in each["outcome"] for each in none.outcomes)


def test_parts_share_the_time_and_ceilings_come_first(tmp_path):
    made = Recorded(tmp_path, "cuda")
    rows, _ = bench.bench(made, ["training", "assignment"])
    assert list(made.commands) == ["bench_ceilings", "bench_assignment", "bench_training"]
    seconds = [
        float(command.partition("--seconds ")[2].split()[0])
        for command, _ in made.commands.values()
    ]
    # Nothing took any time, so the last has all of it.
    assert seconds == pytest.approx([15 - 10, 20 - 10, 60 - 10], abs=2.5)
    assert all(row["status"] == part.NOT_RUN for row in rows)


def test_small_kernels_are_those_of_the_cpu():
    small_kernels.main("cuda", "cpu")


def test_small_kernels_notice_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(small_kernels, "zero_outside_", lambda maps, extents: maps)
    with pytest.raises(SystemExit, match="in place differs from the CPU"):
        small_kernels.main("cuda", "cpu")


# --- the whole ------------------------------------------------------------------------------------


def test_a_subcommand_leaves_its_record_and_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "Steps", lambda folder, device, seconds: Recorded(folder, device))
    arguments = ["bench", "--output", str(tmp_path), "--device", "cpu", "--parts", "matching"]
    assert cli.main([*arguments, "--commit", "0123456789abcdef"]) == 1
    content = json.loads((tmp_path / "bench.json").read_text())
    assert {"command", "commit", "packages", "environment", "steps", "rows"} <= set(content)
    told = capsys.readouterr().out
    assert told.endswith((tmp_path / "bench.md").read_text())
    assert "2 not run; 0 targets missed" in told


@pytest.mark.slow
@pytest.mark.parametrize("subcommand", ["test", "sanitize"])
def test_a_subcommand_runs_on_a_cpu(subcommand, tmp_path):
    command = [sys.executable, "benchmarks/gpu", subcommand, "--device", "cpu"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

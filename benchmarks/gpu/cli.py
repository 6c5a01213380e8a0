"""Everything of detr_fast that needs a GPU, in one command.

    python benchmarks/gpu build    --output FOLDER   # the extension, in this checkout
    python benchmarks/gpu test     --output FOLDER   # all tests; want of a GPU is a failure
    python benchmarks/gpu sanitize --output FOLDER   # compute-sanitizer on every kernel
    python benchmarks/gpu bench    --output FOLDER   # measurements beside floors, peers and targets
    python benchmarks/gpu all      --output FOLDER   # one after another

Needs CUDA, torch and what it brings, pytest for the tests (with pytest-xdist they are faster, and
some fail without the other packages of the extra "test"), and no network. Each subcommand ends
within --minutes; what it did not come to is reported as not run, and `bench --parts` gives a part
the whole time. Leaves in FOLDER <subcommand>.json and .md, and the output of each step as
<step>.log. With `--device cpu` everything runs on tiny problems without a GPU, to show that it
works; nothing is measured by that. The exit status is 0 only if all that was asked for ran and
passed.
"""

import argparse
import json
from pathlib import Path

from detr_fast._environment import environment

from . import steps as steps_of
from .bench import SHARES, bench, run_part_process
from .record import record, shortcomings
from .report import add_comparison, measurements_table, rows_passed, steps_table, summary
from .steps import PASSED, PROGRAMS, Steps

SUBCOMMANDS = ("build", "test", "sanitize", "bench")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.subcommand == "part":
        run_part_process(options.name, options.device, options.seconds, options.file)
        return 0
    if options.subcommand == "environment":
        about = environment()
        print(json.dumps(about, indent=1))
        missing = shortcomings(about, options.device)
        print(*missing, sep="\n")
        return int(bool(missing))
    if options.subcommand == "small":
        from .small_kernels import main as run_small

        run_small(options.kernels, options.device)
        return 0
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    asked = SUBCOMMANDS if options.subcommand == "all" else (options.subcommand,)
    # No short circuit: each is run whatever became of those before.
    passed = [_run(subcommand, folder, options) for subcommand in asked]
    return 0 if all(passed) else 1


def _run(subcommand: str, folder: Path, options: argparse.Namespace) -> bool:
    steps = Steps(folder, options.device, 60 * options.minutes)
    result: dict = {}
    text = []
    passed = True
    if subcommand == "bench":
        rows, clocks = bench(steps, options.parts)
        add_comparison(rows)
        result = {"rows": rows, "clocks": clocks}
        text = [measurements_table(rows), summary(rows)]
        passed = rows_passed(rows)
    else:
        getattr(steps_of, subcommand)(steps)
    passed = passed and all(o["outcome"] == PASSED for o in steps.outcomes)
    result = {**record(options.commit), "device": options.device, "steps": steps.outcomes, **result}
    (folder / f"{subcommand}.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n\n".join([_heading(result), steps_table(steps.outcomes), *text]) + "\n"
    (folder / f"{subcommand}.md").write_text(text)
    print(f"\n{text}", end="")
    return passed


def _heading(result: dict) -> str:
    about = result["environment"]
    gpus = ", ".join(gpu["name"] for gpu in about["gpus"]) or "no GPU"
    return (
        f"`{result['command']}` on {gpus} (driver {about['driver']}), {about['cpu']['name']}; "
        f"torch {about['torch']}; commit {result['commit'][:12]}"
        f"{' with uncommitted changes' if result['uncommitted'] else ''}; {result['date']}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name in (*SUBCOMMANDS, "all", "environment", "part", "small"):
        # The last three are the processes that the others start.
        sub = subcommands.add_parser(name)
        sub.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
        if name == "part":
            sub.add_argument("name", choices=list(SHARES))
            sub.add_argument("--seconds", type=float, required=True)
            sub.add_argument("--file", type=Path, required=True)
            continue
        if name == "environment":
            continue
        if name == "small":
            sub.add_argument("--kernels", choices=PROGRAMS, required=True)
            continue
        sub.add_argument("--output", type=Path, required=True)
        sub.add_argument("--minutes", type=float, default=9.0, help="for each subcommand")
        sub.add_argument("--commit", help="of a checkout without its history")
        if name in ("bench", "all"):
            sub.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES))
    return parser

"""Makes of a JSON of pytest-benchmark what is kept of it: a smaller JSON, a table and plots.

    python benchmarks/report.py assignment.json --out benchmarks/results/MACHINE

Benchmarks whose `extra_info` differs only in "subject" are the same workload. The table gives the
median of each subject and how many times longer it takes than detr_fast; a ratio below 1 is a
workload that detr_fast loses, and is marked.
"""

import argparse
import json
from pathlib import Path

OURS = "detr_fast"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    content = summary(json.loads(arguments.json.read_text()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / arguments.json.stem
    target.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    target.with_suffix(".md").write_text(table(content))
    for axis in ("batch", "queries", "targets"):
        plot(content, axis, target.with_name(f"{target.name}_{axis}.png"))


def summary(content: dict) -> dict:
    """Machine, versions, commit, and the median and quartiles of each benchmark in seconds."""
    machine = content["machine_info"]
    return {
        "cpu": machine["cpu"].get("brand_raw", machine["processor"]),
        "cores": machine["cpu"].get("count"),
        "system": f"{machine['system']} {machine['release']}",
        "python": machine["python_version"],
        "packages": machine.get("packages", {}),
        "threads": machine.get("threads"),
        "load": machine.get("load"),
        "commit": content["commit_info"]["id"],
        "uncommitted": content["commit_info"]["dirty"],
        "date": content["datetime"],
        "benchmarks": [
            {
                **run["extra_info"],
                **{name: run["stats"][name] for name in ("median", "q1", "q3", "rounds")},
            }
            for run in content["benchmarks"]
        ],
    }


# "matcher" is the share of a benchmark's time in the matcher, in seconds.
MEASURED = ("subject", "median", "q1", "q3", "rounds", "matcher")


def by_workload(content: dict) -> dict[tuple, dict[str, dict]]:
    """The benchmarks of each workload by subject."""
    workloads: dict[tuple, dict[str, dict]] = {}
    for run in content["benchmarks"]:
        workload = tuple((name, value) for name, value in run.items() if name not in MEASURED)
        workloads.setdefault(workload, {})[run["subject"]] = run
    return workloads


def table(content: dict) -> str:
    workloads = by_workload(content)
    subjects = [OURS, *sorted({run["subject"] for run in content["benchmarks"]} - {OURS})]
    names = [name for name, _ in next(iter(workloads))]
    versions = ", ".join(f"{name} {version}" for name, version in content["packages"].items())
    changed = " with uncommitted changes" if content["uncommitted"] else ""
    lines = [
        f"{content['cpu']}, {content['cores']} cores, {content['threads']} thread(s) used, load "
        f"{content['load']:.1f} at the start; {content['system']}; Python {content['python']}; "
        f"{versions}; commit {content['commit']}{changed}; {content['date']}.",
        "",
        "Medians; in brackets how many times the median of detr_fast, **bold** where it loses.",
        "",
        "| " + " | ".join([*names, *subjects]) + " |",
        "|" + "---|" * (len(names) + len(subjects)),
    ]
    for workload, runs in workloads.items():
        cells = [str(value) for _, value in workload]
        lines.append("| " + " | ".join([*cells, *(cell(runs, subject) for subject in subjects)]))
        lines[-1] += " |"
    return "\n".join(lines) + "\n"


def cell(runs: dict[str, dict], subject: str) -> str:
    if subject not in runs:
        return "-"
    time = duration(runs[subject]["median"])
    if "matcher" in runs[subject]:
        time += f", matcher {duration(runs[subject]['matcher'])}"
    if subject == OURS or OURS not in runs:
        return time
    ratio = runs[subject]["median"] / runs[OURS]["median"]
    return f"{time} ({ratio:.1f})" if ratio >= 1 else f"{time} (**{ratio:.2f}**)"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


# Fewer points along an axis say nothing that the table does not.
FEWEST_POINTS = 3


def plot(content: dict, axis: str, path: Path) -> None:
    """Time against one axis, a panel for each choice of the others that has enough points on it.

    Nothing is drawn where none has.
    """
    import matplotlib.pyplot as plt

    panels: dict[tuple, dict[str, list]] = {}
    for run in content["benchmarks"]:
        if axis not in run:
            return
        others = tuple(
            f"{name} {value}" for name, value in run.items() if name not in (*MEASURED, axis)
        )
        points = panels.setdefault(others, {}).setdefault(run["subject"], [])
        points.append((run[axis], run["median"]))
    panels = {
        others: lines
        for others, lines in panels.items()
        if max(len(points) for points in lines.values()) >= FEWEST_POINTS
    }
    if not panels:
        return
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 4 * rows), sharey=True, squeeze=False
    )
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    for panel, (others, lines) in zip(axes.flat, panels.items(), strict=False):
        for subject, points in sorted(lines.items()):
            points.sort()
            panel.loglog(*zip(*points, strict=True), "o-", label=subject)
        panel.set_title("\n".join(others), fontsize=8)
        panel.set_xlabel(axis)
    for row in axes:
        row[0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""The figures of a benchmark as bars and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

_PARTS = {
    "pre": "#c7c7c7",
    "backbone": "#1f77b4",
    "encoder": "#2ca02c",
    "decoder": "#ff7f0e",
    "heads": "#d62728",
    "model in one piece": "#9467bd",
    "post": "#7f7f7f",
}


def plot_benchmark(record: Mapping, path: str | Path) -> Path:
    """Draws a row of panels for each model.

    The model's time in the zoo's protocol with the published one, the stages of the smallest batch
    of one size, and images a second over the batch size, as far as each was measured.

    Args:
        record: of `inference.benchmark.run_benchmark`.
        path: file to write; its suffix names the format, PNG for example.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    models = record["models"]
    panels = _panels(models[0]["workloads"])
    most = max(len(w["implementations"]) for model in models for w in model["workloads"])
    height = 2.2 + 0.34 * max(most, 4)
    figure = Figure(figsize=(5.6 * len(panels), height * len(models)), dpi=100)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(models), len(panels), squeeze=False)
    for row, model in zip(axes, models, strict=True):
        for axis, panel in zip(row, panels, strict=True):
            panel(axis, model)
    path = Path(path)
    figure.savefig(path)
    return path


def _panels(workloads: Sequence[Mapping]) -> list:
    panels = []
    if any(workload["name"] == "zoo protocol" for workload in workloads):
        panels.append(_protocol)
    sizes = [w["batch_size"] for w in workloads if w["name"] == "fixed size"]
    if sizes:
        panels.append(_stages)
    if len(set(sizes)) > 1:
        panels.append(_throughput)
    return panels


def _protocol(axis, model: Mapping) -> None:
    (workload,) = (w for w in model["workloads"] if w["name"] == "zoo protocol")
    names = [own["name"] for own in workload["implementations"]]
    for place, own in enumerate(workload["implementations"]):
        seconds = {key: 1e3 * own["seconds"]["model"][key] for key in ("median", "q1", "q3")}
        reach = [[seconds["median"] - seconds["q1"]], [seconds["q3"] - seconds["median"]]]
        axis.barh(place, seconds["median"], xerr=reach, color=_PARTS["backbone"], capsize=3)
        axis.annotate(
            _shown(seconds["median"]),
            (seconds["q3"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for published in model["published"]:
        if published["gpu"] == "V100":
            axis.axvline(1e3 * published["seconds"], color="#d62728", ls="--", lw=1.2)
            axis.plot([], [], "--", color="#d62728", label="V100, published (fp32)")
            _legend(axis)
    axis.margins(x=0.15)
    _name(axis, names)
    axis.set_title(f"{model['name']}, zoo protocol: the model alone", fontsize=10)
    axis.set_xlabel("ms, median and quartiles over images", fontsize=9)


def _stages(axis, model: Mapping) -> None:
    fixed = [w for w in model["workloads"] if w["name"] == "fixed size"]
    workload = min(fixed, key=lambda w: w["batch_size"])
    names = [own["name"] for own in workload["implementations"]]
    drawn = set()
    for place, own in enumerate(workload["implementations"]):
        left = 0.0
        for part, median in _parts(own).items():
            label = None if part in drawn else part
            axis.barh(place, 1e3 * median, left=left, color=_PARTS[part], label=label)
            drawn.add(part)
            left += 1e3 * median
        axis.annotate(
            _shown(left),
            (left, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.margins(x=0.12)
    _name(axis, names)
    size = " x ".join(map(str, workload["sizes"][0]))
    axis.set_title(f"{model['name']}, {size}, batch size {workload['batch_size']}", fontsize=10)
    axis.set_xlabel("ms, medians of the stages and their sum", fontsize=9)
    _legend(axis)


def _parts(own: Mapping) -> dict[str, float]:
    seconds = {stage: figures["median"] for stage, figures in own["seconds"].items()}
    stages = {stage: figures["median"] for stage, figures in own["stages"].items()}
    if own["stages_of"] != "itself":
        stages = {"model in one piece": seconds["model"]}
    return {"pre": seconds["pre"], **stages, "post": seconds["post"]}


def _throughput(axis, model: Mapping) -> None:
    from matplotlib.ticker import LogFormatter

    lines: dict[str, list[tuple[int, float]]] = {}
    for workload in model["workloads"]:
        if workload["name"] == "fixed size":
            for own in workload["implementations"]:
                point = (workload["batch_size"], own["images_per_second"])
                lines.setdefault(own["name"], []).append(point)
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), "o-", label=name, lw=1.6, ms=4)
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    for place in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        place(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axis.set_title(f"{model['name']}: throughput of the model alone", fontsize=10)
    axis.set_xlabel("batch size", fontsize=9)
    axis.set_ylabel("images/s", fontsize=9)
    axis.tick_params(labelsize=8, which="both")
    axis.grid(alpha=0.3, which="both")
    _legend(axis)


def _legend(axis) -> None:
    """Below the panel, where it hides nothing."""
    options = {"ncols": 3, "fontsize": 8, "frameon": False, "columnspacing": 1.2}
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), **options)


def _name(axis, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def _shown(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"

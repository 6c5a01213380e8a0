"""What was measured as Markdown, and the folder in which it is kept."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import published
from .implementations import REFERENCE

_LEGEND = (
    "End to end is pre (read, resize, normalise, bring to the device), model and post (boxes in "
    "pixels, on the CPU), one after another. FLOPs are those of the plain model, even where fewer "
    "are computed. The roofline gives each of its matrix products its arithmetic, at the rate of "
    "torch's product, or its traffic, whichever takes longer, and everything else no time; shares "
    "beyond 100 % say that fewer products or faster ones are enough. Peak memory is what a first "
    "call takes beside weights and images."
)
_PARTS = ("pre", "backbone", "encoder", "decoder", "heads", "post")


def write(record: Mapping, folder: str | Path) -> list[Path]:
    """Writes inference.json, inference.md and inference.png; returns their paths."""
    from ...visualization.benchmark import plot_benchmark

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "inference"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(render(record) + "\n")
    plot_benchmark(record, stem.with_suffix(".png"))
    return [stem.with_suffix(suffix) for suffix in (".json", ".md", ".png")]


def render(record: Mapping) -> str:
    """All figures of a record of `run_benchmark`, as text that is also Markdown."""
    lines = [*_circumstances(record), "", *_models(record["models"])]
    for model in record["models"]:
        for workload in model["workloads"]:
            sizes = workload["sizes"]
            shown = " x ".join(map(str, sizes[0])) if len(sizes) == 1 else f"{len(sizes)} sizes"
            lines += [
                "",
                f"## {model['name']}, {workload['name']}, batch size {workload['batch_size']}, "
                f"{shown}",
                "",
                *_times(workload),
            ]
            if any(own["stages"] for own in workload["implementations"]):
                lines += ["", *_stages(workload)]
        lines += _not_timed(model)
    return "\n".join(lines)


def _circumstances(record: Mapping) -> list[str]:
    environment, conditions = record["environment"], record["conditions"]
    settings = record["settings"]
    cpu, hardware = environment["cpu"], record["hardware"]
    gpus = [gpu["name"] for gpu in environment["gpus"]]
    if record["device"].startswith("cuda"):
        where = f"{', '.join(gpus)}, driver {environment['driver']}"
    else:
        where = f"{cpu['name']}, {cpu['cores']} cores ({', '.join(cpu['isa']) or 'no AVX2'})"
    changed = " with uncommitted changes" if conditions["uncommitted"] else ""
    commit = f"commit {conditions['commit']}{changed}; " if conditions["commit"] else ""
    rates = ", ".join(f"{1e-12 * rate:.3g} TFLOP/s in {p}" for p, rate in hardware["flops"].items())
    clocks = {
        f"{place} {clock}"
        for model in record["models"]
        for workload in model["workloads"]
        for place, clock in workload["clocks"].items()
    }
    load = conditions["load"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        f"{where}; device {record['device']}, {cpu['threads']} threads, "
        f"load {'not readable' if load is None else f'{load:.1f}'} at the start; "
        f"clocks {'; '.join(sorted(clocks)) or 'not readable'}; {environment['platform']}, "
        f"Python {environment['python']}, {versions}; {commit}{conditions['date']}.",
        "",
        f"Measured in this run: a large matrix product {rates}; a large copy "
        f"{1e-9 * hardware['copy_bandwidth']:.3g} GB/s read and written. "
        f"{'Random' if settings['weights'] == 'none' else 'Published'} weights; "
        f"{'images' if settings['coco_path'] else 'noise of the sizes of images'} of val2017; "
        f"rounds of each fixed size: {settings['rounds']}; torch.compile: "
        f"{settings['compile_mode']}; freed memory "
        f"{'kept by the process' if settings['keep_memory'] else 'as the C library has it'}; "
        "float32 without TF32.",
        "",
        _LEGEND,
    ]


def _models(models: list[Mapping]) -> list[str]:
    """Sizes of the models beside the paper's, and times that others published."""
    header = ["model", "parameters (M)", "paper", "GMAC, fixed size", "GMAC, protocol", "paper"]
    header += [f"{gpu}, published (ms)" for gpu in published.SOURCES]
    rows = []
    for model in models:
        paper = model["paper"] or {"parameters": "-", "gmac": "-"}
        gmac = {workload["name"]: f"{workload['gmac']:.1f}" for workload in model["workloads"]}
        rows.append(
            [
                model["name"],
                f"{1e-6 * model['parameters']:.1f}",
                str(paper["parameters"]),
                gmac.get("fixed size", "-"),
                gmac.get("zoo protocol", "-"),
                str(paper["gmac"]),
                *(_published(model["published"], gpu) for gpu in published.SOURCES),
            ]
        )
    sources = [
        f"- {gpu}, published, not measured: {who}." for gpu, who in published.SOURCES.items()
    ]
    return [*table(header, rows), "", *sources]


def _published(times: Sequence[Mapping], gpu: str) -> str:
    told = [f"{_ms(t['seconds'])} (batch size {t['batch_size']})" for t in times if t["gpu"] == gpu]
    return ", ".join(told) or "-"


def _times(workload: Mapping) -> list[str]:
    header = ["ms: median (quartiles)", "pre", "model", "post", "end to end"]
    header += ["images/s", f"times {REFERENCE}", "TFLOP/s", "of the roofline", "peak MiB"]
    implementations = workload["implementations"]
    reference = {own["name"]: own["images_per_second"] for own in implementations}.get(REFERENCE)
    rows = []
    for own in implementations:
        seconds, speed, peak = own["seconds"], own["images_per_second"], own["peak_bytes"]
        rows.append(
            [
                own["name"],
                *(_spread(seconds[part]) for part in ("pre", "model", "post", "end_to_end")),
                _three_digits(speed),
                f"{speed / reference:.2f}",
                f"{1e-12 * own['flops']:.3g}",
                f"{own['share_of_roofline']:.0%}",
                "-" if peak is None else f"{peak / 2**20:.0f}",
            ]
        )
    return table(header, rows)


def _stages(workload: Mapping) -> list[str]:
    rows = []
    for own in workload["implementations"]:
        parts = {**own["seconds"], **own["stages"]}
        cells = [_spread(parts[part]) if part in parts else "one piece" for part in _PARTS]
        note = "" if own["stages_of"] in (None, "itself") else f", {own['stages_of']}"
        rows.append([own["name"] + note, *cells])
    return table(["ms: median (quartiles)", *_PARTS], rows)


def _not_timed(model: Mapping) -> list[str]:
    lines = [f"- {name} is not timed: {why}" for name, why in model["absent"].items()]
    lines += [
        f"- {name} is not timed, its answers are not the model's: {'; '.join(faults)}"
        for name, faults in model["refused"].items()
    ]
    return ["", *lines] if lines else []


def _spread(seconds: Mapping) -> str:
    median, q1, q3 = (_ms(seconds[name]) for name in ("median", "q1", "q3"))
    return f"{median} ({q1} to {q3})"


def _ms(seconds: float) -> str:
    return _three_digits(1e3 * seconds)


def _three_digits(value: float) -> str:
    """At least three significant digits, and no exponent where there are more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table whose columns are as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [
            cells[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
        ]
        for cells in (header, *rows)
    ]
    return [f"| {' | '.join(cells)} |" for cells in (aligned[0], ruler, *aligned[1:])]

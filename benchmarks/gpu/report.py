"""Tables of what was run and of what was measured, each figure beside its floor and its target."""

from .part import ABSENT, FAILED, MEASURED, OURS
from .targets import HARDWARE, verdict

COPY, PRODUCT = "copy", "matrix product"


def figures(row: dict) -> dict[str, float]:
    """The figures of a measured row by their units."""
    seconds = row["seconds"]
    found = {"ms": seconds * 1000}
    if row["images"]:
        found["images/s"] = row["images"] / seconds
    if row["flops"]:
        found["TFLOP/s"] = row["flops"] / seconds / 1e12
    if row["bytes"]:
        found["GB/s"] = row["bytes"] / seconds / 1e9
    if row["peak_mib"] is not None:
        found["MiB"] = row["peak_mib"]
    return found | row["extra"]


def ceilings(rows: list[dict]) -> dict[str, float]:
    """Bytes and operations a second that this device was seen to do, where they were measured."""
    best: dict[str, float] = {}
    for row in rows:
        if row["part"] != "ceilings" or row["status"] != MEASURED:
            continue
        for what, unit, count in ((COPY, "bytes", "bytes"), (PRODUCT, "flops", "flops")):
            if row["what"].startswith(what):
                best[unit] = max(best.get(unit, 0), row[count] / row["seconds"])
    return best


def floor_ms(row: dict, limits: dict[str, float]) -> float | None:
    """Milliseconds below which the device cannot come: its bytes, or its operations."""
    if row["floor_seconds"] is not None:
        return 1000 * row["floor_seconds"]
    times = [row[unit] / limits[unit] for unit in limits if row[unit]]
    return 1000 * max(times) if times else None


def add_comparison(rows: list[dict]) -> None:
    """Puts figures, floor and verdict into the measured rows."""
    limits = ceilings(rows)
    for row in rows:
        if row["status"] != MEASURED:
            continue
        row["figures"] = figures(row)
        row["floor_ms"] = None if row["part"] == "ceilings" else floor_ms(row, limits)
        row["target"] = verdict(row["what"], row["figures"]) if row["who"] == OURS else ""


def measurements_table(rows: list[dict]) -> str:
    """The rows as Markdown, those without figures with their reason."""
    lines = [
        f"Targets are those for one {HARDWARE}. The floor is the larger of bytes and operations",
        "over the ceilings measured in this run.",
        "",
        "| what | who | ms | other figures | floor, ms | times the floor | target |",
        "| --- | --- | --: | --- | --: | --: | --- |",
    ]
    for row in rows:
        if row["status"] == MEASURED:
            others = ", ".join(f"{v:.4g} {k}" for k, v in row["figures"].items() if k != "ms")
            floor = row["floor_ms"]
            ms = row["figures"]["ms"]
            cells = [f"{ms:.4g}", others, "", "", row["target"]]
            if floor:
                cells[2:4] = f"{floor:.3g}", f"{ms / floor:.1f}"
        else:
            cells = ["", f"{row['status']}: {row['note']}", "", "", ""]
        lines.append("| " + " | ".join([row["what"], row["who"], *cells]) + " |")
    return "\n".join(lines)


def steps_table(outcomes: list[dict]) -> str:
    """What was run and what became of it, as Markdown."""
    lines = ["| step | outcome | s |", "| --- | --- | --: |"]
    lines += [f"| {o['step']} | {o['outcome']} | {o['seconds']:.0f} |" for o in outcomes]
    return "\n".join(lines)


def rows_passed(rows: list[dict]) -> bool:
    """Whether everything planned was measured, but for peers that are not installed."""
    return all(row["status"] in (MEASURED, ABSENT) for row in rows)


def summary(rows: list[dict]) -> str:
    """How many rows there are of each kind."""
    counts = {status: 0 for status in (MEASURED, ABSENT, "not run", FAILED)}
    for row in rows:
        counts[row["status"]] += 1
    missed = sum("missed" in row.get("target", "") for row in rows)
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{told}; {missed} targets missed"

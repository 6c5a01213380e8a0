"""`detr-fast env`: versions, hardware, how the package was built, and what runs where."""

import argparse
import json


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "env",
        help="show versions, hardware and which implementation of each operation runs where",
        description="Shows what an issue report needs, and for each operation that is slow, why.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from .._environment import environment

    report = environment()
    print(json.dumps(report, indent=1) if args.json else render(report))
    return 0


def render(report: dict) -> str:
    """The report of `environment()` as text for a terminal."""
    cpu, build = report["cpu"], report["build"]
    cuda = f"CUDA {report['torch_cuda']}" if report["torch_cuda"] else "CPU only"
    isa = " ".join(cpu["isa"]) or "no AVX2"
    gpus = [f"{g['name']}, sm {g['capability']}, {g['memory_gib']} GiB" for g in report["gpus"]]
    rows = [
        ("detr_fast", f"{report['detr_fast']}, Python {report['python']}, {report['platform']}"),
        ("torch", f"{report['torch']} ({cuda}), torchvision {report['torchvision']}"),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores, {isa}"),
        ("", f"torch uses {cpu['torch_capability']} and {cpu['threads']} threads"),
        ("GPU", "; ".join(gpus) or "none visible to torch"),
        ("driver", report["driver"] or "no NVIDIA driver"),
        ("extension", _built(build)),
    ]
    if build["available"]:
        rows += [("", _built_cpu(build)), ("", _built_cuda(build))]
    text = [f"{label:<10} {value}" for label, value in rows]
    return "\n".join([*text, "", *render_operations(report["operations"])])


def render_operations(operations: list[dict]) -> list[str]:
    """A table of what runs each operation, then a line for each reason why one is slow."""
    width = max(len(name) for name in ("operation", *(entry["name"] for entry in operations))) + 2
    lines = [f"{'operation':<{width}} {'on a CPU':<18} on a GPU"]
    lines += [f"{o['name']:<{width}} {o['cpu']:<18} {o['cuda']}" for o in operations]
    slow = {}
    for device in ("cpu", "cuda"):
        for entry in operations:
            if entry[f"{device}_slow"]:
                slow.setdefault((device, entry[f"{device}_slow"]), []).append(entry["name"])
    places = {"cpu": "a CPU", "cuda": "a GPU"}
    lines += [
        f"slow on {places[device]}: {', '.join(names)} ({why})"
        for (device, why), names in slow.items()
    ]
    return lines


def _built(build: dict) -> str:
    if not build["available"]:
        return f"not in use: {build['reason']}"
    standard = f"C++{build['cxx_standard'] // 100 % 100}"
    threads = "OpenMP" if build["openmp"] else "one thread"
    return f"in use; {build['compiler']}, {standard}, {threads}, torch {build['torch']}"


def _built_cpu(build: dict) -> str:
    dtypes = " and ".join(build["cpu_inference_dtypes"]) or "no dtype"
    kernels = f"CPU kernels for {build['cpu_capability']}"
    return f"{kernels}, those of attention and convolution for {dtypes}"


def _built_cuda(build: dict) -> str:
    if not build["cuda_kernels"]:
        return f"CUDA kernels: {build['cuda_reason']}"
    return f"CUDA kernels for {build['cuda_arch_list']}, toolkit {build['cuda_toolkit']}"

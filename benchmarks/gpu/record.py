"""What the figures depend on: hardware, driver, versions, commit."""

import sys
from pathlib import Path

from detr_fast._environment import conditions, environment, versions

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "scipy", "transformers", "timm", "torch-linear-assignment")


def record(commit: str | None = None) -> dict:
    """Everything but the figures; JSON-serialisable.

    Args:
        commit: of the checkout, where it is a copy without its history.
    """
    told, about = conditions(), environment()
    # Where the toolkit lies on this machine decides nothing.
    about["build"].pop("cuda_toolkit", None)
    return {
        "command": " ".join(["python", *sys.argv]),
        **told,
        "commit": told["commit"] or commit or "unknown",
        "environment": about,
        "packages": versions(*PACKAGES),
    }


def shortcomings(about: dict, device: str) -> list[str]:
    """What is missing of what is to be proved on a device, a sentence each.

    Args:
        about: as `environment` tells it.
        device: "cuda" or "cpu", on which nothing is needed.
    """
    if device == "cpu":
        return []
    build = about["build"]
    found = [] if about["gpus"] else ["There is no GPU."]
    if not build["available"]:
        found.append(build["reason"])
    elif not build.get("cuda_kernels"):
        found.append(f"The extension has no CUDA kernels: {build.get('cuda_reason')}.")
    return found + [
        f"{operation['name']} has no Triton kernel: {operation['cuda_slow']}."
        for operation in about["operations"]
        if operation["cuda"] == "torch kernel"
    ]

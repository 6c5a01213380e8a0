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

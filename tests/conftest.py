"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """New memory holds NaN, so that an output that is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real COCO images and the checkpoints' shapes, beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared test data at ../shared/data (looked beside {SHARED.parent.name}/)")
    return folder


@pytest.fixture
def fp16_on_a_cpu(monkeypatch):
    """Lets an engine compute in fp16 on a CPU, slowly, as few CPUs have instructions for it."""
    from detr_fast.inference import engine

    monkeypatch.setattr(engine, "check_precision", lambda *_: None)


@pytest.fixture(autouse=True)
def _unbroken_context(request):
    """Ends the run where a kernel broke the device's context, in which no other test can pass."""
    yield
    if request.node.get_closest_marker("cuda") and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"{request.node.nodeid} broke the CUDA context: {error}", returncode=1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    if os.environ.get("DETR_FAST_REQUIRE_GPU") == "1":
        raise pytest.UsageError(
            "DETR_FAST_REQUIRE_GPU=1 asks for the tests that need a GPU, but "
            "torch.cuda.is_available() is False."
        )
    skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False")
    for item in items:
        # Not its keywords, which are also the names of the folders above it.
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)

"""Puts into the JSON of a benchmark what its figures depend on."""

import importlib.metadata
import os

import torch

PACKAGES = (
    *("torch", "numpy", "scipy", "transformers"),
    *("lapx", "py-lap-solver", "torch-linear-assignment"),
)


def pytest_benchmark_update_machine_info(config, machine_info):
    installed = {package.metadata["Name"] for package in importlib.metadata.distributions()}
    machine_info["packages"] = {
        name: importlib.metadata.version(name) for name in PACKAGES if name in installed
    }
    machine_info["threads"] = torch.get_num_threads()
    machine_info["load"] = os.getloadavg()[0]

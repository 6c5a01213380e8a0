"""Puts into the JSON of a benchmark what its figures depend on."""

import os

import torch

from detr_fast._environment import versions

PACKAGES = (
    *("torch", "numpy", "scipy", "transformers"),
    *("lapx", "py-lap-solver", "torch-linear-assignment"),
)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["packages"] = versions(*PACKAGES)
    machine_info["threads"] = torch.get_num_threads()
    machine_info["load"] = os.getloadavg()[0]

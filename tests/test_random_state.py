"""The random generators of a process go on where they were saved."""

import random

import numpy as np
import torch

from detr_fast.training.random_state import rng_state, seed_everything, set_rng_state


def draw():
    return (
        torch.rand(3).tolist(),
        random.random(),
        np.random.random_sample(3).tolist(),  # noqa: NPY002
        np.random.standard_normal(),  # noqa: NPY002
    )


def test_random_generators_are_restored():
    device = torch.device("cpu")
    state = rng_state(device)
    one = draw()
    assert draw() != one
    set_rng_state(state, device)
    assert draw() == one


def test_a_seed_sets_all_generators():
    seed_everything(2**32 + 5)
    one = draw()
    assert all(a != b for a, b in zip(one, draw(), strict=True))
    seed_everything(2**32 + 5)
    assert draw() == one

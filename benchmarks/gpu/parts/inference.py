"""Inference of the four models: batches of one size, and mixed sizes with and without exactness.

Images lie on the device. What is compared is the predictions' distance from the model in float32.
"""

from functools import partial

import torch

from ..part import OURS, Case, Measurement
from ..setting import Setting


def cases(setting: Setting) -> list[Case]:
    return []

"""What the device can do: bytes moved by a copy, operations of a matrix product, in a second."""

from functools import partial

import torch

from detr_fast.inference.benchmark.roofline import copy_bandwidth, matrix_rate

from ..part import Case, Measurement
from ..report import COPY, PRODUCT
from ..setting import Setting


def cases(setting: Setting) -> list[Case]:
    listed = [Case(COPY, "torch", partial(_copy, setting))]
    # A CPU has no instructions for float16, and takes minutes.
    for dtype in setting.size((torch.float16, torch.bfloat16), (torch.bfloat16,)):
        what = f"{PRODUCT}, {str(dtype).removeprefix('torch.')}"
        listed.append(Case(what, "torch", partial(_product, setting, dtype)))
    return listed


def _copy(setting: Setting) -> Measurement:
    return Measurement(1.0, bytes=copy_bandwidth(torch.device(setting.device)))


def _product(setting: Setting, dtype: torch.dtype) -> Measurement:
    return Measurement(1.0, flops=matrix_rate(dtype, torch.device(setting.device)))

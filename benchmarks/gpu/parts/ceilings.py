"""What the device can do: bytes moved by a copy, operations of a matrix product."""

from functools import partial

import torch

from ..part import Case, Measurement
from ..report import COPY, PRODUCT
from ..setting import Setting
from ..timing import seconds_of


def cases(setting: Setting) -> list[Case]:
    numbers, side = setting.size((2**30, 8192), (2**18, 64))
    listed = [Case(f"{COPY} of {2 * numbers} bytes", "torch", partial(_copy, setting, numbers))]
    for dtype in (torch.float16, torch.bfloat16):
        what = f"{PRODUCT} of side {side}, {str(dtype).removeprefix('torch.')}"
        listed.append(Case(what, "torch", partial(_product, setting, side, dtype)))
    return listed


def _copy(setting: Setting, numbers: int) -> Measurement:
    source = torch.randn(numbers // 2, device=setting.device).view(torch.float16)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), setting.device)
    # Read once and written once.
    return Measurement(seconds, bytes=2 * source.nbytes)


def _product(setting: Setting, side: int, dtype: torch.dtype) -> Measurement:
    # Not zeros, on which a GPU needs less power and runs faster.
    left, right = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = seconds_of(lambda: torch.mm(left, right, out=out), setting.device)
    return Measurement(seconds, flops=2 * side**3)

"""The dispatcher's library of detr_fast: how an operation comes to be known to torch.

An operation is declared here in Python: its schema, its reference as the implementation for every
device, its fake. Compiled kernels register themselves for their device when the extension loads,
and the dispatcher prefers them; so nothing outside this file asks whether they are there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _extension

_library = torch.library.Library("detr_fast", "DEF")

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def define(schema: str, reference: Callable, fake: Callable) -> Callable:
    """Registers the operation `schema` of namespace detr_fast.

    Args:
        schema: name, arguments and returns in torch's schema language.
        reference: implementation on every device that has no compiled kernel.
        fake: shapes and dtypes of the result, for tracing.

    Returns:
        The overload to call.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"detr_fast::{name}", fake, lib=_library)
    return getattr(torch.ops.detr_fast, name).default


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises a TypeError unless `tensor` is a floating tensor of a supported dtype."""
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}: use float16, bfloat16, float32 or float64."
        )


def implementation(operation: str, device_type: str) -> str:
    """What runs an operation for tensors on a device.

    Args:
        operation: its name without the namespace.
        device_type: "cpu", "cuda"...

    Returns:
        "reference", "CUDA kernel" or, with the instruction set, "CPU kernel (avx512)".
    """
    key = device_type.upper()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"detr_fast::{operation}", key):
        return "reference"
    kind = f" ({_extension.build_info()['cpu_capability']})" if device_type == "cpu" else ""
    return f"{key} kernel{kind}"


_extension.available()

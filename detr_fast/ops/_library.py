"""The dispatcher's library of detr_fast: how an operation comes to be known to torch.

An operation is declared here in Python: its schema, its reference as the implementation for every
device, its fake. Compiled kernels register themselves for their device when the extension loads,
and the dispatcher prefers them; so nothing outside this file asks whether they are there.
"""

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _extension

_library = torch.library.Library("detr_fast", "DEF")

# Operations whose kernels on CUDA are in Triton; where there are none, torch has its own.
TRITON_OPERATIONS: set[str] = set()

# Operations that compute what one of torch's does, which is used where they have no kernel.
TORCH_ELSEWHERE: set[str] = set()

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


def define_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Gives an operation of this library a gradient; see `torch.library.register_autograd`."""
    torch.library.register_autograd(
        f"detr_fast::{name}", backward, setup_context=setup_context, lib=_library
    )


def triton_is_installed() -> bool:
    """Whether Triton can be imported, without importing it."""
    return importlib.util.find_spec("triton") is not None


def define_triton(module: str, *names: str) -> frozenset[str]:
    """Registers kernels in Triton for CUDA, where Triton is installed.

    Args:
        module: of `detr_fast.kernels`; imported, and Triton with it, at the first launch.
        names: operations of this library, each implemented by the function of `module` of its name.

    Returns:
        The types of the devices that the kernels are for: "cuda", or none.
    """
    TRITON_OPERATIONS.update(names)
    if not triton_is_installed():
        return frozenset()
    for name in names:
        _library.impl(name, _imported_when_called(module, name), "CUDA")
    return frozenset({"cuda"})


def compiled_inference_dtypes() -> frozenset[torch.dtype]:
    """The dtypes that attention and convolution have compiled kernels for on this CPU."""
    names = _extension.build_info().get("cpu_inference_dtypes", ())
    return frozenset(getattr(torch, name) for name in names)


def _imported_when_called(module: str, name: str) -> Callable:
    def call(*arguments):
        kernels = importlib.import_module(f"..kernels.{module}", __package__)
        return getattr(kernels, name)(*arguments)

    return call


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

"""A GPU that is not there: its tensors have shapes and types, but no numbers.

Inside of `imagined_gpu()` everything on the CPU is computed as ever, and everything on "cuda" is
traced: operations give tensors of the right shape and dtype there, and gradients too. Whatever a
GPU would refuse is refused, and whatever would make the host wait for it is written down. What the
host copies from it is filled with one number; a single value that it asks for is true, and of a
mask all is kept.

What torch.library knows to trace is traced by that: the launches behind it, in Triton and in CUDA,
do not happen here. See tests/test_attention_launches.py and tests/native for those.
"""

import contextlib
import threading
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

if torch.cuda.is_available():
    pytest.skip("there is a GPU, and no need to imagine one", allow_module_level=True)

GPU = torch.device("cuda", 0)

# Operations of detr_fast that have a kernel for CUDA, with the arguments that it takes on the CPU.
# The others run as their references there.
KERNELS = {
    "linear_assignment": {"sizes"},
    "matching_cost": {"offsets", "counts"},
    "set_matching": {"offsets", "counts"},
    "zero_outside": set(),
    "zero_outside_": set(),
    "attention": set(),
    "attention_backward": set(),
}


# A GPU refuses operands of several dtypes in these, which tracing does not see.
ONE_DTYPE = {
    "aten::addmm",
    "aten::baddbmm",
    "aten::bmm",
    "aten::convolution",
    "aten::cudnn_convolution_add_relu",
    "aten::cudnn_convolution_relu",
    "aten::mm",
}
_REFERENCE = torch._C.DispatchKey.CompositeExplicitAutograd


class GpuTensor(Tensor):
    """A tensor of the imagined GPU; `meta` is the same without a device."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor, autocast: bool):
        made = Tensor._make_subclass(
            cls, meta, dispatch_device=autocast, device_for_backend_keys=GPU
        )
        made.meta = meta
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda, is_cpu, is_meta = (property(lambda self, is_it=x: is_it) for x in (True, False, False))

    def get_device(self) -> int:
        return 0

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError(f"{operation.name()} on an imagined GPU, outside of imagined_gpu()")


class ImaginedGpu(TorchDispatchMode):
    """Traces what happens on the GPU.

    Args:
        autocast: whether it has autocast, and no gradients: autocast asks torch itself where a
            tensor is, and so does the engine of gradients, which finds no such GPU.

    Attributes:
        calls: every operation there with the shapes and dtypes of its tensors.
        waits: those of them for which the host waits.
        uploads: shapes of what is copied there without waiting.
        page_locked: shapes and dtypes of those of them that were copied out of page-locked memory;
            the others keep the host until they are read.
        unfinished: shapes of what is copied from there without waiting, which the host may read too
            early.
        reads: the number that the host finds in what it copies from there.
    """

    def __init__(self, autocast: bool):
        super().__init__()
        self._autocast = autocast
        self.calls: list[tuple] = []
        self.waits: list[str] = []
        self.uploads: list[tuple[int, ...]] = []
        self.page_locked: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.unfinished: list[tuple[int, ...]] = []
        self.reads = 0
        # By address; kept, so that no other tensor gets the same one.
        self._locked: dict[int, torch.UntypedStorage] = {}

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Raises an AssertionError where the host waited."""
        before = len(self.waits)
        yield
        assert self.waits[before:] == [], "the host waits for the GPU"

    def waited(self) -> list[str]:
        """What the host has waited for since this was asked the last time."""
        waits, self.waits = self.waits, []
        return waits

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if operation is torch.ops.prim.device.default:
            return GPU
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        there = any(isinstance(x, GpuTensor) for x in tensors)
        to_gpu = any(isinstance(x, torch.device) and x.type in ("cuda", "meta") for x in leaves)
        name = operation.name()
        if name == "aten::_pin_memory":
            return self._lock(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._lock(operation(*args, **{**kwargs, "pin_memory": False}))
        if not there and not to_gpu:
            return operation(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            # Comes here whole in inference mode only.
            with self:
                return operation.decompose(*args, **kwargs)
        if name.startswith("detr_fast::"):
            return self._of_ours(operation, args, kwargs)
        if name in ONE_DTYPE:
            dtypes = {x.dtype for x in tensors if x.is_floating_point()}
            if len(dtypes) > 1:
                raise RuntimeError(f"{name} of {sorted(map(str, dtypes))}")
        self.calls.append((name, [(tuple(x.shape), x.dtype) for x in tensors]))
        moved = self._copied_between(operation, args, kwargs, to_gpu)
        if moved is not None:
            return moved
        for x in tensors:
            if not isinstance(x, GpuTensor) and not x.is_meta and x.dim() > 0:
                raise RuntimeError(
                    f"{name} of tensors on a GPU and one of shape {tuple(x.shape)} on the CPU"
                )
        read = self._read(operation, args, kwargs)
        if read is not None:
            return read
        return self._traced(operation, args, kwargs)

    def _copied_between(self, operation, args, kwargs, to_gpu):
        """The result of a copy from or to the GPU, None for anything else."""
        name = operation.name()
        if name == "aten::_to_copy" and "device" in kwargs:
            if to_gpu and not isinstance(args[0], GpuTensor):
                self._upload(args[0], kwargs.get("non_blocking"))
                return self._traced(operation, (args[0].to("meta"),), kwargs)
            if not to_gpu:
                if kwargs.get("non_blocking"):
                    self.unfinished.append(tuple(args[0].shape))
                return self._to_host(self._traced(operation, args, {**kwargs, "device": GPU}))
        if name == "aten::copy_" and isinstance(args[0], GpuTensor) != isinstance(
            args[1], GpuTensor
        ):
            if args[1].is_meta or (args[1].dim() == 0 and args[1].is_cpu):
                return args[0]
            if isinstance(args[1], GpuTensor):
                return args[0].copy_(self._to_host(args[1]))
            self._upload(args[1], len(args) > 2 and args[2])
            return self._traced(operation, (args[0], args[1].to("meta")), {})
        return None

    def _upload(self, x: Tensor, without_waiting: bool) -> None:
        if without_waiting:
            self.uploads.append(tuple(x.shape))
            if x.untyped_storage().data_ptr() in self._locked:
                self.page_locked.append((tuple(x.shape), x.dtype))
        else:
            self.waits.append(f"a copy of {tuple(x.shape)} to the GPU")

    def _lock(self, x: Tensor) -> Tensor:
        self._locked[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    def _to_host(self, x: Tensor) -> Tensor:
        self.waits.append(f"a copy of {tuple(x.shape)} to the host")
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).fill_(self.reads)

    def _read(self, operation, args, kwargs):
        """What the host learns from an operation whose result depends on values, else None."""
        name = operation.name()
        if name == "aten::_local_scalar_dense":
            self.waits.append("a single value")
            return torch.ones((), dtype=args[0].dtype).item()
        if name in ("aten::equal", "aten::is_nonzero"):
            self.waits.append(name)
            return True
        if name == "aten::nonzero":
            self.waits.append(f"nonzero of {tuple(args[0].shape)}")
            return self._empty(args[0].numel(), args[0].dim())
        if name == "aten::bincount":
            self.waits.append(name)
            return self._empty(args[2])
        if name.startswith(("aten::masked_select", "aten::repeat_interleave", "aten::_unique")):
            raise NotImplementedError(f"{name}, for which the host waits")
        if name.startswith("aten::index") and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)
            for x in tree_leaves(args[1])
        ):
            self.waits.append(f"{name} with a mask")
            places = [self._places(x) for x in args[1]]
            return self._traced(operation, (args[0], places, *args[2:]), kwargs)
        return None

    def _places(self, index):
        if index is None or index.dtype != torch.bool:
            return index
        assert index.dim() == 1, "masks of one dimension are enough so far"
        return self._empty(len(index))

    def _empty(self, *size: int) -> Tensor:
        return GpuTensor(torch.empty(size, dtype=torch.int64, device="meta"), self._autocast)

    def _of_ours(self, operation, args, kwargs):
        name = operation.name().partition("::")[2]
        schema = [argument.name for argument in operation._schema.arguments]
        given = {**dict(zip(schema, args, strict=False)), **kwargs}
        tensors = {key: x for key, x in given.items() if isinstance(x, Tensor)}
        self.calls.append((operation.name(), [(tuple(x.shape), x.dtype) for x in tensors.values()]))
        if name not in KERNELS:
            with self:
                return operation._op_dk(_REFERENCE, *args, **kwargs)
        for key, x in tensors.items():
            if not isinstance(x, GpuTensor) and key not in KERNELS[name]:
                raise RuntimeError(f"{name} takes {key} on the GPU, and got it on the CPU")
        if isinstance(tensors.get("offsets"), GpuTensor):
            raise RuntimeError(f"{name} takes offsets on the CPU, and got them on the GPU")
        return self._traced(operation, args, kwargs)

    def _traced(self, operation, args, kwargs):
        """The operation on tensors without a device, and its results as tensors of the GPU."""
        originals = {}

        def bare(x):
            if isinstance(x, GpuTensor):
                originals[id(x.meta)] = x
                return x.meta
            if isinstance(x, torch.device):
                return torch.device("meta")
            return x.to("meta") if isinstance(x, Tensor) and x.dim() else x

        def back(x):
            if not isinstance(x, Tensor):
                return x
            return originals[id(x)] if id(x) in originals else GpuTensor(x, self._autocast)

        args, kwargs = tree_map(bare, (args, kwargs))
        return tree_map(back, _KERNELS.get(operation.name(), operation)(*args, **kwargs))


class _InAnotherThread(TorchDispatchMode):
    """The same GPU in another thread: what intercepts operations does so in one thread alone."""

    def __init__(self, gpu: ImaginedGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return self._gpu.__torch_dispatch__(operation, types, args, kwargs)


def _convolution(x, weight, *form):
    out = torch.ops.aten.convolution(x, weight, *form)
    # As cuDNN has it; without a device torch goes by another rule.
    if any(_is_channels_last(each) for each in (x, weight)):
        out = out.contiguous(memory_format=torch.channels_last)
    return out


def _convolution_relu(x, weight, bias, stride, padding, dilation, groups):
    _require_channels_last(x, weight)
    return _convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)


def _convolution_add_relu(x, weight, z, alpha, bias, *form):
    _require_channels_last(z)
    out = _convolution_relu(x, weight, bias, *form)
    if z.shape != out.shape:
        raise RuntimeError(f"a summand of shape {tuple(z.shape)} for {tuple(out.shape)}")
    return out


def _require_channels_last(*tensors: Tensor) -> None:
    """cuDNN would copy what lies otherwise, at every call."""
    for x in tensors:
        if not _is_channels_last(x):
            raise RuntimeError(f"cuDNN is given strides {x.stride()} of {tuple(x.shape)}")


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


# Of operations that torch traces otherwise than CUDA computes them, or not at all.
_KERNELS = {
    "aten::convolution": _convolution,
    "aten::cudnn_convolution_relu": _convolution_relu,
    "aten::cudnn_convolution_add_relu": _convolution_add_relu,
}


@contextlib.contextmanager
def imagined_gpu(autocast: bool = False) -> Iterator[ImaginedGpu]:
    """Within it "cuda" is an imagined GPU; see `ImaginedGpu`."""
    # Where there is no driver, one that knows of one device; on a GPU this does nothing.
    torch._C._ensureCUDADeviceGuardSet()
    only_on_cpu = torch._C._only_lift_cpu_tensors()
    # torch.tensor(..., device="cuda") makes a tensor on the CPU then, and copies it.
    torch._C._set_only_lift_cpu_tensors(True)
    gpu = ImaginedGpu(autocast)
    run_thread = threading.Thread.run

    def run_with_gpu(thread: threading.Thread) -> None:
        with _InAnotherThread(gpu):
            run_thread(thread)

    patches = (
        mock.patch("torch.cuda._lazy_init", return_value=None),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", bool),
        # A parameter that moves cannot keep its object, as it would on a GPU.
        mock.patch("torch.__future__.get_overwrite_module_params_on_conversion", return_value=True),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch.object(threading.Thread, "run", run_with_gpu),
    )
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield stack.enter_context(gpu)
    finally:
        torch._C._set_only_lift_cpu_tensors(only_on_cpu)

"""Attention of encoder and decoder in 16 bits, against every other kernel for it that torch has.

All are captured in a CUDA graph, and compared first with float32. `padded` images have fewer valid
rows of keys than the grid; operations are counted for valid keys alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from detr_fast.ops import attention as operation
from detr_fast.reference.attention import scaled_dot_product_attention, valid_keys

from ..part import OURS, Case, Measurement, UnavailableError
from ..setting import Setting
from ..timing import captured, seconds_of

# Absolute plus relative, in float16: as tests/tolerances.py has it.
TOLERANCE = 2e-3
HEAD_SIZE = 32


@dataclass(frozen=True)
class Workload:
    """Queries, and keys on a grid of which each image fills some rows."""

    images: int
    heads: int
    queries: int
    grid: tuple[int, int]
    padded: bool = False
    backward: bool = False

    def __str__(self) -> str:
        size = f"{self.images} x {self.heads} heads x {self.queries} x {self.keys} x {HEAD_SIZE}"
        options = ", padded" * self.padded + ", forward and backward" * self.backward
        return f"attention, {size}{options}"

    @property
    def keys(self) -> int:
        return self.grid[0] * self.grid[1]

    def rows(self) -> list[int]:
        """Valid rows of keys of each image, from half of them to all."""
        full, steps = self.grid[0], max(self.images - 1, 1)
        return [full - full * b // (2 * steps) if self.padded else full for b in range(self.images)]

    @property
    def products(self) -> int:
        """Of matrices, of which backward needs five: one for the scores again."""
        return 2 + 5 * self.backward

    def flops(self) -> float:
        valid = sum(rows * self.grid[1] for rows in self.rows())
        return 2.0 * self.products * self.heads * self.queries * valid * HEAD_SIZE

    def bytes(self) -> float:
        """Of queries, keys, values and output; backward reads them again with a gradient, and
        writes three.
        """
        ends = 2 * self.images * self.heads * (self.queries + self.keys) * HEAD_SIZE
        return 2.0 * ends * (3 if self.backward else 1)

    def tensors(self, device: str) -> list[Tensor]:
        """Query, key and value in the memory order of a projection."""
        return [
            torch.randn(self.images, length, self.heads, HEAD_SIZE, device=device)
            .to(torch.float16)
            .transpose(1, 2)
            for length in (self.queries, self.keys, self.keys)
        ]


def workloads(setting: Setting) -> list[Workload]:
    # Grids of stride 32 and 16 at 800 x 1066, and the decoder's queries.
    coarse, fine, decoder = setting.size(((25, 34), (50, 67), 100), ((3, 5), (4, 5), 6))
    workload = partial(Workload, *setting.size((8, 8), (2, 1)))
    return [
        workload(fine[0] * fine[1], fine),
        workload(fine[0] * fine[1], fine, padded=True),
        workload(fine[0] * fine[1], fine, backward=True),
        workload(coarse[0] * coarse[1], coarse),
        workload(decoder, fine),
        workload(decoder, coarse, padded=True),
    ]


def cases(setting: Setting) -> list[Case]:
    # What compiles for long comes last.
    return [
        Case(str(workload), who, partial(_measure, setting, workload, make))
        for peers in (WHO, COMPILED)
        for workload in workloads(setting)
        for who, make in peers.items()
        if not (workload.padded and who in WITHOUT_MASKS)
    ]


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _measure(setting: Setting, workload: Workload, make: Callable) -> Measurement:
    attend: Attention = make(setting, workload)
    query, key, value = workload.tensors(setting.device)
    found = attend(query, key, value)
    extents = _extents(workload, setting.device)
    exact = (x.float() for x in (query, key, value))
    expected = scaled_dot_product_attention(*exact, extents, workload.grid[1], 0.0)
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    run = partial(attend, query, key, value)
    if workload.backward:
        leaves = [x.requires_grad_() for x in (query, key, value)]
        grad = torch.randn_like(found)

        def run():
            return torch.autograd.grad(attend(query, key, value), leaves, grad)

    seconds = seconds_of(captured(run, setting.device), setting.device)
    return Measurement(seconds, bytes=workload.bytes(), flops=workload.flops())


def _extents(workload: Workload, device: str) -> Tensor | None:
    if not workload.padded:
        return None
    return torch.tensor([[rows, workload.grid[1]] for rows in workload.rows()], device=device)


def _ours(setting: Setting, workload: Workload) -> Attention:
    if not setting.on_gpu:
        _run_kernels_on_cpu()
    extents = _extents(workload, setting.device)
    return lambda q, k, v: operation.attention(q, k, v, extents, workload.grid)


@cache
def _run_kernels_on_cpu() -> torch.library.Library:
    """Makes Triton's interpreter the operation's kernel for tensors of a CPU, from now on."""
    from detr_fast.kernels import attention as kernels

    library = torch.library.Library("detr_fast", "IMPL")
    library.impl("attention", kernels.attention, "CPU")
    library.impl("attention_backward", kernels.attention_backward, "CPU")
    operation._KERNEL_DEVICES = frozenset({"cpu"})
    # Whose kernels are there as long as it is, and it is as long as it is cached.
    return library


def _sdpa(setting: Setting, workload: Workload, backend: SDPBackend) -> Attention:
    valid = valid_keys(_extents(workload, setting.device), workload.grid[1], workload.keys)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=valid)

    try:
        attend(*workload.tensors(setting.device))
    except RuntimeError as error:
        if not any(told in str(error) for told in ("No available kernel", "No viable backend")):
            raise
        raise UnavailableError(f"no {backend.name} kernel takes this") from error
    return attend


def _varlen(setting: Setting, workload: Workload) -> Attention:
    """Over images of their own length, which lie behind one another."""
    if not setting.on_gpu:
        raise UnavailableError("needs CUDA")
    from torch.nn.attention.varlen import varlen_attn

    lengths = [rows * workload.grid[1] for rows in workload.rows()]
    of_keys = torch.tensor([0, *lengths], device=setting.device).cumsum(0).to(torch.int32)
    queries = [workload.queries] * workload.images
    of_queries = torch.tensor([0, *queries], device=setting.device).cumsum(0).to(torch.int32)
    kept = torch.cat(
        [
            torch.arange(length, device=setting.device) + b * workload.keys
            for b, length in enumerate(lengths)
        ]
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        if workload.padded:
            k, v = k[kept], v[kept]
        out = varlen_attn(q, k, v, of_queries, of_keys, workload.queries, max(lengths))
        return out.unflatten(0, (workload.images, -1)).transpose(1, 2)

    return attend


def _flex(setting: Setting, workload: Workload) -> Attention:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if workload.backward and not setting.on_gpu:
        raise UnavailableError("has no gradient on a CPU")
    mask = None
    if workload.padded:
        last = torch.tensor(workload.rows(), device=setting.device) * workload.grid[1]
        mask = create_block_mask(
            lambda b, h, q, k: k < last[b],
            workload.images,
            None,
            workload.queries,
            workload.keys,
            device=setting.device,
        )
    # Its own graphs cannot be captured in another.
    return partial(setting.compile(flex_attention, graphs=False), block_mask=mask)


WHO = {
    OURS: _ours,
    "SDPA, flash": partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION),
    "SDPA, cuDNN": partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION),
    "SDPA, memory-efficient": partial(_sdpa, backend=SDPBackend.EFFICIENT_ATTENTION),
    "SDPA, math": partial(_sdpa, backend=SDPBackend.MATH),
    "varlen_attn": _varlen,
}
COMPILED = {"FlexAttention, compiled": _flex}
WITHOUT_MASKS = ("SDPA, flash",)

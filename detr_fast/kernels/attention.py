"""Launches of the attention kernels: what `ops.attention` registers for CUDA."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from triton import cdiv

from .attention_backward import key_gradient, query_gradient
from .attention_blocks import Blocks, Entry, entry_of, splits, table_key
from .attention_forward import forward, join


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its grid, its arguments by name, its warps and stages."""

    kernel: Callable
    grid: tuple[int, ...]
    arguments: dict
    warps: int
    stages: int

    def run(self) -> None:
        if 0 not in self.grid:
            self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `reference.attention.attention`, whose arguments and results these are."""
    arguments = (query, key, value, extents, columns, dropout, seed)
    launches, results = forward_launches(_blocks(query, dropout), *arguments)
    _run(query, launches)
    return results


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
    seed: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.attention.attention_backward`."""
    arguments = (query, key, value, extents, columns, dropout, seed)
    entry = _blocks(query, dropout)
    launches, results = backward_launches(entry, grad, *arguments, out, logsumexp)
    _run(query, launches)
    return results


def forward_launches(
    entry: Entry,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
    seed: Tensor | None,
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """The launches of a forward pass with the blocks of `entry`, and the results they write."""
    query, key, value = (_rows_contiguous(x) for x in (query, key, value))
    images, heads, queries, head_size = query.shape
    out = _heads_inside(query)
    logsumexp = query.new_empty((images, heads, queries), dtype=torch.float32)
    shares = splits(queries, key.shape[2])
    if shares == 1:
        target, sums, split_strides = out, logsumexp, (0, 0)
    else:
        target = query.new_empty((shares, *query.shape), dtype=torch.float32)
        sums = query.new_empty((shares, *logsumexp.shape), dtype=torch.float32)
        split_strides = target.stride(0), sums.stride(0)
    blocks = entry.forward
    tiles = images * heads * cdiv(queries, blocks.queries)
    arguments = {
        **_problem(query, key, value, extents, columns, dropout, seed),
        **_tile(query, blocks, dropout),
        "out": target,
        "logsumexp": sums,
        **_strides("o", target if shares == 1 else target[0]),
        "stride_os": split_strides[0],
        "stride_ls": split_strides[1],
        # Shares are made of whole tiles.
        "split_keys": cdiv(cdiv(key.shape[2], shares), blocks.keys) * blocks.keys,
    }
    launches = [Launch(forward, (tiles, shares), arguments, blocks.warps, blocks.stages)]
    if shares > 1:
        # 16 bytes of float32 for each thread, at least.
        rows = max(16, 512 // _padded(head_size))
        arguments = {
            "partial_out": target,
            "partial_logsumexp": sums,
            "out": out,
            "logsumexp": logsumexp,
            "stride_ps": split_strides[0],
            "stride_ls": split_strides[1],
            **_strides("o", out),
            "heads": heads,
            "queries": queries,
            "splits": shares,
            "HEAD_SIZE": head_size,
            "BLOCK_D": _padded(head_size),
            "BLOCK_Q": rows,
        }
        launches.append(Launch(join, (images * heads * cdiv(queries, rows),), arguments, 4, 1))
    return launches, (out, logsumexp)


def backward_launches(
    entry: Entry,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
    seed: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """The launches of a backward pass with the blocks of `entry`, and the results they write."""
    grad, query, key, value = (_rows_contiguous(x) for x in (grad, query, key, value))
    images, heads, queries, _ = query.shape
    gradients = tuple(_heads_inside(x) for x in (query, key, value))
    common = {
        **_problem(query, key, value, extents, columns, dropout, seed),
        "grad": grad,
        **_strides("g", grad),
        "logsumexp": logsumexp,
        "delta": torch.empty_like(logsumexp),
    }
    blocks = entry.query_gradient
    over_keys = Launch(
        query_gradient,
        (images * heads * cdiv(queries, blocks.queries),),
        {
            **common,
            **_tile(query, blocks, dropout),
            "out": out,
            **_strides("o", out),
            "grad_query": gradients[0],
            **_strides("d", gradients[0]),
        },
        blocks.warps,
        blocks.stages,
    )
    blocks = entry.key_gradient
    over_queries = Launch(
        key_gradient,
        (images * heads * cdiv(key.shape[2], blocks.keys),),
        {
            **common,
            **_tile(query, blocks, dropout),
            "grad_key": gradients[1],
            "grad_value": gradients[2],
            **_strides("d", gradients[1]),
        },
        blocks.warps,
        blocks.stages,
    )
    return [over_keys, over_queries], gradients


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
    seed: Tensor | None,
) -> dict:
    """The arguments that every kernel over queries and keys takes."""
    return {
        "query": query,
        "key": key,
        "value": value,
        "extents": None if extents is None else extents.contiguous(),
        "seed": seed,
        **_strides("q", query),
        **_strides("k", key),
        **_strides("v", value),
        "heads": query.shape[1],
        "queries": query.shape[2],
        "keys": key.shape[2],
        "columns": columns,
        "scale": query.shape[3] ** -0.5,
        # Of 31 bits; see `kept`.
        "threshold": min(round(dropout * 2**31), 2**31 - 1),
        "rescale": 1.0 / (1.0 - dropout),
    }


def _tile(query: Tensor, blocks: Blocks, dropout: float) -> dict:
    """The compile-time arguments."""
    return {
        "HEAD_SIZE": query.shape[3],
        "BLOCK_D": _padded(query.shape[3]),
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "DROPOUT": dropout > 0,
        # Three products of TensorFloat-32 are as accurate as one of float32; 16 bits ignore it.
        "PRECISION": "tf32x3",
    }


def _strides(letter: str, x: Tensor) -> dict:
    return {f"stride_{letter}{axis}": x.stride(i) for i, axis in enumerate("bhl")}


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _heads_inside(x: Tensor) -> Tensor:
    """An empty tensor of shape (B, H, L, D) in the memory order of (B, L, H, D)."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


def _padded(head_size: int) -> int:
    return table_key(80, 2, 1, head_size)[-1]


def _blocks(query: Tensor, dropout: float) -> Entry:
    # Tensors of a CPU come here under Triton's interpreter, to which blocks are all the same.
    major, minor = torch.cuda.get_device_capability(query.device) if query.is_cuda else (8, 0)
    key = table_key(10 * major + minor, query.element_size(), query.shape[2], query.shape[3])
    return entry_of(key, dropout > 0)


def _run(query: Tensor, launches: list[Launch]) -> None:
    with torch.cuda.device_of(query):
        for launch in launches:
            launch.run()

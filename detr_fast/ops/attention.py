"""Scaled dot-product attention over the valid part of each image's grid of keys."""

import torch
from torch import Tensor

from ..reference import attention as reference
from ._library import (
    check_floating,
    compiled_inference_dtypes,
    define,
    define_autograd,
    define_triton,
)

_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`softmax(query key^T / sqrt(D)) value` of each head (Vaswani et al. 2017, section 3.2).

    The keys of an image lie on a grid in row-major order; those beyond the image's extent weigh 0,
    whatever finite values they hold. Differentiable. An image's result does not depend on the other
    images of the batch. On CUDA, where Triton is installed and D is 16 to 128, float16, bfloat16
    and float32 run a fused kernel that skips the rows of keys below an image. On a CPU with AVX-512
    float32, and with AVX512-BF16 bfloat16 too, run a compiled one over the valid keys alone where
    no gradient is recorded, there is no dropout and D is a multiple of 16 up to 128. Everything
    else goes through `torch.nn.functional.scaled_dot_product_attention`, its kernels and its
    gradient.

    Args:
        query: (B, H, L, D), floating point, any strides.
        key, value: (B, H, K, D), of the dtype and on the device of `query`.
        extents: (B, 2) int64 on that device: valid rows and columns of each image, from the top
            left corner; what exceeds the grid counts as the grid. None: all keys are valid.
        grid: rows and columns of the grid of keys, whose product is K; needed with `extents`.
        dropout: probability of dropping a weight, in [0, 1). The others grow by 1 / (1 - dropout).

    Returns:
        (B, H, L, D) in the dtype of `query`, for 16-bit types with softmax in float32. Zeros in an
        image without a valid key.

    Raises:
        TypeError: a dtype that is not supported, or that differs between the arguments.
        ValueError: shapes, devices or the grid do not agree, or `dropout` is out of range.
    """
    _check(query, key, value, extents, grid, dropout)
    columns = 1 if grid is None else max(grid[1], 1)
    if _takes_kernel(query) or _takes_inference_kernel(query, key, value, dropout):
        seed = None
        if dropout > 0:
            seed = torch.randint(2**62, (1,), device=query.device)
        out, _ = _operation(query, key, value, extents, columns, dropout, seed)
        return out
    return reference.scaled_dot_product_attention(query, key, value, extents, columns, dropout)


def _takes_kernel(query: Tensor) -> bool:
    return (
        query.device.type in _KERNEL_DEVICES
        and query.dtype in _KERNEL_DTYPES
        and 16 <= query.shape[3] <= 128
    )


def _takes_inference_kernel(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    recorded = query.requires_grad or key.requires_grad or value.requires_grad
    return (
        query.device.type == "cpu"
        and query.dtype in _COMPILED_DTYPES
        and 16 <= query.shape[3] <= 128
        and query.shape[3] % 16 == 0
        and dropout == 0
        and not (recorded and torch.is_grad_enabled())
    )


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    grid: tuple[int, int] | None,
    dropout: float,
) -> None:
    check_floating("query", query)
    if query.ndim != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}: use (B, H, L, D).")
    images, heads, _, head_size = query.shape
    for name, x in (("key", key), ("value", value)):
        if x.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}, query {query.dtype}: use one dtype.")
        if x.device != query.device:
            raise ValueError(f"{name} is on {x.device}, query on {query.device}: use one device.")
        if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (images, heads, head_size):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, but query {tuple(query.shape)} needs "
                f"({images}, {heads}, K, {head_size})."
            )
    keys = key.shape[2]
    if value.shape[2] != keys:
        raise ValueError(f"there are {keys} keys and {value.shape[2]} values: use equally many.")
    if grid is not None and grid[0] * grid[1] != keys:
        raise ValueError(f"grid is {tuple(grid)}, but there are {keys} keys: use rows x columns.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}: use a probability in [0, 1).")
    if extents is None:
        return
    if grid is None:
        raise ValueError("extents are given without a grid: pass its rows and columns as grid.")
    if extents.dtype != torch.int64:
        raise TypeError(f"extents have dtype {extents.dtype}: use int64.")
    if extents.shape != (images, 2):
        raise ValueError(
            f"extents have shape {tuple(extents.shape)}: expected ({images}, 2), rows and columns "
            "of each image."
        )
    if extents.device != query.device:
        raise ValueError(f"extents are on {extents.device}, query on {query.device}.")


def _heads_inside(x: Tensor) -> Tensor:
    """A tensor like (B, H, L, D) in the memory order of (B, L, H, D), that of a projection."""
    images, heads, length, size = x.shape
    return x.new_empty((images, length, heads, size)).transpose(1, 2)


def _fake(query: Tensor, key, value, extents, columns, dropout, seed) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return _heads_inside(query), query.new_empty(query.shape[:3], dtype=dtype)


def _fake_backward(grad, query: Tensor, key: Tensor, value: Tensor, *_) -> tuple[Tensor, ...]:
    return tuple(_heads_inside(x) for x in (query, key, value))


def _setup_context(ctx, inputs, output) -> None:
    query, key, value, extents, columns, dropout, seed = inputs
    out, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.save_for_backward(query, key, value, extents, seed, out, logsumexp)
    ctx.columns, ctx.dropout = columns, dropout


def _backward(ctx, grad: Tensor, _) -> tuple:
    query, key, value, extents, seed, out, logsumexp = ctx.saved_tensors
    gradients = _backward_operation(
        grad, query, key, value, extents, ctx.columns, ctx.dropout, seed, out, logsumexp
    )
    return *gradients, None, None, None, None


_PROBLEM = (
    "Tensor query, Tensor key, Tensor value, Tensor? extents, SymInt columns, float dropout, "
    "Tensor? seed"
)
_operation = define(f"attention({_PROBLEM}) -> (Tensor, Tensor)", reference.attention, _fake)
_backward_operation = define(
    f"attention_backward(Tensor grad, {_PROBLEM}, Tensor out, Tensor logsumexp) "
    "-> (Tensor, Tensor, Tensor)",
    reference.attention_backward,
    _fake_backward,
)
define_autograd("attention", _backward, _setup_context)

_COMPILED_DTYPES = compiled_inference_dtypes()
_KERNEL_DEVICES = define_triton("attention", "attention", "attention_backward")

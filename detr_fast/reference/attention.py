"""Attention over the valid keys of each image: the plain truth, and torch's own fused operation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .philox import philox
from .zero_outside import outside


def valid_keys(extents: Tensor | None, columns: int, keys: int) -> Tensor | None:
    """Which keys of each image are not padding, (B, 1, 1, K) bool; None for all of all images."""
    if extents is None:
        return None
    return ~outside(extents, keys // columns, columns).flatten(1)[:, None, None, :]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
) -> Tensor:
    """The operation through torch's fused one, which has kernels and a gradient of its own."""
    if 0 in (*query.shape, key.shape[2]):
        # Torch's kernel for CPUs divides by the numbers of images and heads.
        return torch.zeros_like(query)
    valid = valid_keys(extents, columns, key.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=valid, dropout_p=dropout)


def attention_weights(query: Tensor, key: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax of the scaled scores, in float32 or wider.

    Args:
        query: (B, H, L, D).
        key: (B, H, K, D).
        valid: bool, broadcastable to (B, H, L, K), False for keys that must weigh 0; or None.

    Returns:
        (B, H, L, K); zeros in a row without a valid key.
    """
    scores = _scores(query, key, valid)
    # The fill turns the NaN of a row without any valid key into zeros.
    return scores.softmax(-1) if valid is None else scores.softmax(-1).masked_fill(~valid, 0.0)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    extents: Tensor | None,
    columns: int,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention with what its backward pass needs.

    Args:
        query: (B, H, L, D).
        key, value: (B, H, K, D).
        extents: (B, 2) valid rows and columns of each image, or None.
        columns: of the grid of keys; any positive number without extents.
        dropout: probability of dropping a weight, less than 1.
        seed: (1,) int64, from which dropout draws; None without dropout.

    Returns:
        The output (B, H, L, D) in the memory order of (B, L, H, D), and the logarithm to base 2 of
        the sum of the exponentials of each row (B, H, L), float32 or wider, -inf for no valid key.
    """
    valid = valid_keys(extents, columns, key.shape[2])
    weights = attention_weights(query, key, valid)
    weights = weights * _kept(weights, dropout, seed)
    out = weights @ value.to(weights.dtype)
    logsumexp = _scores(query, key, valid).logsumexp(-1) / math.log(2)
    return _heads_inside(out.to(query.dtype)), logsumexp


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
    """The gradients of `attention` with respect to query, key and value, in its memory order.

    Args:
        grad: (B, H, L, D), the gradient of the output.
        query, key, value, extents, columns, dropout, seed: as in the forward pass.
        out, logsumexp: what it returned.
    """
    weights = attention_weights(query, key, valid_keys(extents, columns, key.shape[2]))
    kept = _kept(weights, dropout, seed)
    grad = grad.to(weights.dtype)
    grad_value = (weights * kept).transpose(-2, -1) @ grad
    grad_weights = grad @ value.to(weights.dtype).transpose(-2, -1) * kept
    shared = (weights * grad_weights).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - shared) / math.sqrt(query.shape[-1])
    grad_query = grad_scores @ key.to(weights.dtype)
    grad_key = grad_scores.transpose(-2, -1) @ query.to(weights.dtype)
    return tuple(_heads_inside(x.to(query.dtype)) for x in (grad_query, grad_key, grad_value))


def _scores(query: Tensor, key: Tensor, valid: Tensor | None) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(dtype) / math.sqrt(query.shape[-1])) @ key.to(dtype).transpose(-2, -1)
    return scores if valid is None else scores.masked_fill(~valid, -math.inf)


def _kept(weights: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """What dropout multiplies the weights with: 0, or the factor that keeps their mean."""
    if dropout == 0:
        return torch.ones_like(weights)
    images, heads, queries, keys = weights.shape
    count = torch.arange(queries * keys, device=weights.device).reshape(queries, keys)
    head = torch.arange(images * heads, device=weights.device).reshape(images, heads, 1, 1)
    bits = philox(seed, *torch.broadcast_tensors(count, head)) >> 1
    threshold = min(round(dropout * 2**31), 2**31 - 1)
    return (bits >= threshold).to(weights.dtype) / (1 - dropout)


def _heads_inside(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)

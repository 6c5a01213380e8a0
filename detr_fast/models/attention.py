"""Multi-head attention over padded batches: the only place that turns padding into a mask."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2), batch first.

    Parameters have the names and shapes of `torch.nn.MultiheadAttention`, so that DETR's
    checkpoints fit: `in_proj_weight (3E, E)`, `in_proj_bias (3E,)`, `out_proj`.

    Args:
        embed_dim: width E of queries, keys and values.
        num_heads: heads; divides E.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding: Tensor | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from every query to the keys of its own image.

        Args:
            query: (B, L, E).
            key: (B, K, E).
            value: (B, K, E).
            key_padding: (B, K) bool, True where a key is padding; None where no image has any,
                which lets the fastest kernels run.
            return_weights: also compute the weights. The output does not change by a bit: they
                are computed beside the fused operation, not instead of it.

        Returns:
            The output (B, L, E), and the weights (B, num_heads, L, K) without dropout, or None.
            A padded key weighs exactly 0. An image whose keys are all padding attends to nothing:
            its weights are zeros and its output is the bias of `out_proj`.
        """
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        valid = None if key_padding is None else ~key_padding[:, None, None, :]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=valid, dropout_p=self.dropout if self.training else 0.0
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return out, attention_weights(q, k, valid) if return_weights else None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        return tuple(
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attention_weights(query: Tensor, key: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax of the scaled scores, in float32 or wider.

    Args:
        query: (B, H, L, D).
        key: (B, H, K, D).
        valid: bool, broadcastable to (B, H, L, K), False for keys that must weigh 0; or None.

    Returns:
        (B, H, L, K); zeros in a row without a valid key.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(dtype) / math.sqrt(query.shape[-1])) @ key.to(dtype).transpose(-2, -1)
    if valid is None:
        return scores.softmax(-1)
    # The second fill turns the NaN of a row without any valid key into zeros.
    return scores.masked_fill(~valid, -math.inf).softmax(-1).masked_fill(~valid, 0.0)

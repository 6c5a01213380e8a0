"""Multi-head attention over padded batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.attention import attention
from ..reference.attention import attention_weights, valid_keys


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
        extents: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from every query to the keys of its own image.

        Args:
            query: (B, L, E).
            key: (B, K, E).
            value: (B, K, E).
            extents: (B, 2) int64, rows and columns of `grid` that each image has; None where no
                image is padded, which lets the fastest kernels run.
            grid: rows and columns of the grid that the keys lie on; needed with `extents`.
            return_weights: also compute the weights. The output does not change by a bit: they
                are computed beside the fused operation, not instead of it.

        Returns:
            The output (B, L, E), and the weights (B, num_heads, L, K) without dropout, or None.
            A padded key weighs exactly 0. An image whose keys are all padding attends to nothing:
            its weights are zeros and its output is the bias of `out_proj`.
        """
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        out = attention(q, k, v, extents, grid, self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = None
        if return_weights:
            columns = 1 if grid is None else grid[1]
            weights = attention_weights(q, k, valid_keys(extents, columns, k.shape[2]))
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        return tuple(
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

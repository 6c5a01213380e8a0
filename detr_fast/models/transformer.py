"""DETR's transformer: positions join queries and keys of every layer, never values.

Carion et al. 2020, section 3.2 and appendix A.3, in both orders of normalisation. Tensors are
batch first; the original's are sequence first, which changes no parameter.
"""

import torch
from torch import Tensor, nn

from .attention import MultiheadAttention


class Transformer(nn.Module):
    """Encoder over the feature grid, decoder over the object queries.

    Args:
        hidden_dim: width E of every token.
        nheads: attention heads; divides E.
        enc_layers: encoder layers, 0 or more.
        dec_layers: decoder layers, 1 or more.
        dim_feedforward: width of the hidden layer of the feed-forward blocks.
        dropout: dropout probability, of attention weights too.
        pre_norm: normalise before each block instead of after its residual sum.
    """

    def __init__(
        self,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ):
        super().__init__()
        layer = (hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
        self.encoder = TransformerEncoder(
            [TransformerEncoderLayer(*layer) for _ in range(enc_layers)],
            nn.LayerNorm(hidden_dim) if pre_norm else None,
        )
        self.decoder = TransformerDecoder(
            [TransformerDecoderLayer(*layer) for _ in range(dec_layers)], nn.LayerNorm(hidden_dim)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        features: Tensor,
        extents: Tensor | None,
        query_embed: Tensor,
        pos: Tensor,
        return_attention: bool = False,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
        """Decodes the object queries of every image.

        Args:
            features: (B, E, Hf, Wf), projected backbone features.
            extents: (B, 2) int64, rows and columns of the grid that each image has; None where no
                image is padded.
            query_embed: (Q, E), the learned position of every query.
            pos: (B, E, Hf, Wf), position encoding of the grid.
            return_attention: also return attention weights, see Returns.

        Returns:
            Normalised hidden states of every decoder layer (S, B, Q, E); the encoder's memory
            (B, E, Hf, Wf); and, if asked, a dict of attention weights, else None: "decoder", from
            the queries to the grid in every decoder layer (S, B, nheads, Q, Hf, Wf), and, where
            there is an encoder layer, "encoder", the last one's from the first pair of grid axes
            to the second (B, nheads, Hf, Wf, Hf, Wf).
        """
        grid = features.shape[-2:]
        src, pos = (x.flatten(2).transpose(1, 2) for x in (features, pos))
        queries = query_embed.expand(len(features), -1, -1)
        memory, encoder_weights = self.encoder(src, pos, extents, grid, return_attention)
        states, decoder_weights = self.decoder(
            memory, pos, extents, grid, queries, return_attention
        )
        attention = None
        if return_attention:
            attention = {"decoder": decoder_weights.unflatten(-1, grid)}
            if encoder_weights is not None:
                attention["encoder"] = encoder_weights.unflatten(-1, grid).unflatten(2, grid)
        return states, memory.transpose(1, 2).unflatten(2, grid), attention


class TransformerEncoder(nn.Module):
    """Encoder layers in sequence and, where they normalise first, a last norm."""

    def __init__(self, layers: list["TransformerEncoderLayer"], norm: nn.LayerNorm | None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        extents: Tensor | None,
        grid: tuple[int, int],
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, E) -> memory (B, L, E) and, if asked, the last layer's (B, H, L, L)."""
        weights = None
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            src, weights = layer(src, pos, extents, grid, return_weights and last)
        return src if self.norm is None else self.norm(src), weights


class TransformerDecoder(nn.Module):
    """Decoder layers in sequence; one norm serves the output of every layer."""

    def __init__(self, layers: list["TransformerDecoderLayer"], norm: nn.LayerNorm):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self,
        memory: Tensor,
        pos: Tensor,
        extents: Tensor | None,
        grid: tuple[int, int],
        queries: Tensor,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Memory (B, L, E) -> states (S, B, Q, E) and, if asked, weights (S, B, H, Q, L)."""
        tgt = torch.zeros_like(queries, dtype=memory.dtype)
        states, weights = [], []
        for layer in self.layers:
            tgt, layer_weights = layer(tgt, memory, pos, extents, grid, queries, return_weights)
            states.append(tgt)
            weights.append(layer_weights)
        return self.norm(torch.stack(states)), torch.stack(weights) if return_weights else None


class TransformerEncoderLayer(nn.Module):
    """Self-attention over the grid, then a feed-forward block."""

    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        extents: Tensor | None,
        grid: tuple[int, int],
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, E) -> tokens (B, L, E) and, if asked, attention weights (B, H, L, L)."""
        value = self.norm1(src) if self.pre_norm else src
        query = value + pos
        out, weights = self.self_attn(query, query, value, extents, grid, return_weights)
        src = src + self.dropout(out)
        if not self.pre_norm:
            src = self.norm1(src)
        out = feed_forward(self, self.norm2(src) if self.pre_norm else src)
        src = src + self.dropout(out)
        return src if self.pre_norm else self.norm2(src), weights


class TransformerDecoderLayer(nn.Module):
    """Self-attention between queries, attention to the memory, then a feed-forward block."""

    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.multihead_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor,
        extents: Tensor | None,
        grid: tuple[int, int],
        queries: Tensor,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Refines the queries' states.

        Args:
            tgt: (B, Q, E), states after the layer before; zeros for the first.
            memory: (B, L, E), the encoder's output.
            pos: (B, L, E), position encoding of the memory.
            extents: (B, 2) int64, rows and columns of the grid that each image has, or None.
            grid: rows and columns of the grid of L tokens.
            queries: (B, Q, E), the learned positions of the queries.
            return_weights: also return the attention to the memory.

        Returns:
            States (B, Q, E), not normalised where `pre_norm`, and weights (B, H, Q, L) or None.
        """
        value = self.norm1(tgt) if self.pre_norm else tgt
        query = value + queries
        out, _ = self.self_attn(query, query, value)
        tgt = tgt + self.dropout(out)
        tgt = tgt if self.pre_norm else self.norm1(tgt)

        query = (self.norm2(tgt) if self.pre_norm else tgt) + queries
        out, weights = self.multihead_attn(
            query, memory + pos, memory, extents, grid, return_weights
        )
        tgt = tgt + self.dropout(out)
        tgt = tgt if self.pre_norm else self.norm2(tgt)

        out = feed_forward(self, self.norm3(tgt) if self.pre_norm else tgt)
        tgt = tgt + self.dropout(out)
        return tgt if self.pre_norm else self.norm3(tgt), weights


def feed_forward(layer: TransformerEncoderLayer | TransformerDecoderLayer, x: Tensor) -> Tensor:
    """The two linear layers with ReLU and dropout between them, (B, L, E) -> (B, L, E)."""
    return layer.linear2(layer.dropout(layer.linear1(x).relu()))

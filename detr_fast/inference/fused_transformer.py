"""A trained DETR transformer with everything that does not depend on the image computed ahead.

* Keys of all decoder layers come from the same memory and positions, and values from the same
  memory: one product makes all keys, another all values.
* The first decoder layer begins with zeros, and attention among equal values gives that value: its
  self-attention, and the cross-attention's queries, are the same for every image.
* Only the last decoder layer is read.
* Positions of the object queries are learned, and what they contribute to a projection is a table:
  `(x + pos) W = x W + pos W`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.attention import MultiheadAttention
from ..models.transformer import Transformer, TransformerDecoderLayer, TransformerEncoderLayer
from .linear import FusedLinear
from .token_layout import TokenLayout, attend


class FusedTransformer(nn.Module):
    """Encoder and decoder without gradients; see the module.

    Args:
        transformer: trained, in either order of normalisation.
        query_embed: (Q, E), the learned positions of the queries.
        dtype: of weights and activations.
    """

    def __init__(self, transformer: Transformer, query_embed: Tensor, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        encoder, decoder = transformer.encoder, transformer.decoder
        self.encoder_layers = nn.ModuleList(_EncoderLayer(x, dtype) for x in encoder.layers)
        self.encoder_norm = _copied(encoder.norm, dtype) if encoder.norm else nn.Identity()
        self.decoder_layers = nn.ModuleList(
            _DecoderLayer(x, query_embed, dtype) for x in decoder.layers
        )
        self.decoder_norm = _copied(decoder.norm, dtype)
        crosses = [layer.multihead_attn for layer in decoder.layers]
        _, self.memory_keys, self.memory_values = (
            FusedLinear(torch.cat(weights), torch.cat(biases), dtype)
            for weights, biases in zip(
                zip(*(cross.in_proj_weight.chunk(3) for cross in crosses), strict=True),
                zip(*(cross.in_proj_bias.chunk(3) for cross in crosses), strict=True),
                strict=True,
            )
        )
        first = decoder.layers[0]
        start, start_query = _constant_start(first, query_embed)
        self.start = nn.Buffer(_detached(start, dtype))
        self.start_query = nn.Buffer(_detached(start_query, dtype))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: TokenLayout,
    ) -> Tensor:
        """Decodes the object queries of every image.

        Args:
            tokens: projected backbone features in `dtype`, as the layout has them; may be
                overwritten.
            positions: the encoding of where each token stands, in `dtype`, like `tokens` or
                (1, L, E) for all images.
            layout: where the tokens of each image are.

        Returns:
            Normalised states of the last decoder layer, (B, Q, E).
        """
        for layer in self.encoder_layers:
            tokens = layer(tokens, positions, layout)
        memory = self.encoder_norm(tokens)
        count = len(self.decoder_layers)
        keys = self.memory_keys(memory + positions).chunk(count, -1)
        values = self.memory_values(memory).chunk(count, -1)
        # Layers may overwrite their states.
        states = self.start.repeat(layout.images, *self.start_query.shape[:1], 1)
        query = self.start_query.expand(layout.images, -1, -1)
        for i, (layer, key, value) in enumerate(
            zip(self.decoder_layers, keys, values, strict=True)
        ):
            if i > 0:
                states, query = layer.attend_to_queries(states)
            states = layer.attend_to_memory(states, query, key, value, layout)
        return self.decoder_norm(states)


class _EncoderLayer(nn.Module):
    def __init__(self, layer: TransformerEncoderLayer, dtype: torch.dtype):
        super().__init__()
        self.pre_norm = layer.pre_norm
        self.heads = layer.self_attn.num_heads
        own = layer.self_attn
        sizes = (2 * own.embed_dim, own.embed_dim)
        weights, biases = own.in_proj_weight.split(sizes), own.in_proj_bias.split(sizes)
        self.query_key = FusedLinear(weights[0], biases[0], dtype)
        self.value = FusedLinear(weights[1], biases[1], dtype)
        self.out = FusedLinear.of(own.out_proj, dtype)
        self.norm1, self.norm2 = _copied(layer.norm1, dtype), _copied(layer.norm2, dtype)
        self.feed_forward = _FeedForward(layer, dtype)

    def forward(self, x: Tensor, positions: Tensor, layout: TokenLayout) -> Tensor:
        source = self.norm1(x) if self.pre_norm else x
        query, key = self.query_key(source + positions).chunk(2, -1)
        x = self.out(layout.among_tokens(query, key, self.value(source), self.heads), x)
        if self.pre_norm:
            return self.feed_forward(self.norm2(x), x)
        x = self.norm1(x)
        return self.norm2(self.feed_forward(x, x))


class _DecoderLayer(nn.Module):
    def __init__(self, layer: TransformerDecoderLayer, query_embed: Tensor, dtype: torch.dtype):
        super().__init__()
        self.pre_norm = layer.pre_norm
        self.heads = layer.self_attn.num_heads
        self.in_proj = FusedLinear(layer.self_attn.in_proj_weight, None, dtype)
        self.table = nn.Buffer(_detached(_query_table(layer.self_attn, query_embed, "qk"), dtype))
        self.out = FusedLinear.of(layer.self_attn.out_proj, dtype)
        weight = layer.multihead_attn.in_proj_weight.chunk(3)[0]
        self.cross_proj = FusedLinear(weight, None, dtype)
        self.cross_table = nn.Buffer(
            _detached(_query_table(layer.multihead_attn, query_embed, "q"), dtype)
        )
        self.cross_out = FusedLinear.of(layer.multihead_attn.out_proj, dtype)
        self.norm1, self.norm2 = _copied(layer.norm1, dtype), _copied(layer.norm2, dtype)
        self.norm3 = _copied(layer.norm3, dtype)
        self.feed_forward = _FeedForward(layer, dtype)

    def attend_to_queries(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, Q, E) -> states, and what they ask of the memory, (B, Q, E)."""
        value = self.norm1(states) if self.pre_norm else states
        projected = self.in_proj(value) + self.table
        states = self.out(attend(*projected.chunk(3, -1), self.heads), states)
        states = states if self.pre_norm else self.norm1(states)
        query = self.norm2(states) if self.pre_norm else states
        return states, self.cross_proj(query) + self.cross_table

    def attend_to_memory(
        self,
        states: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
    ) -> Tensor:
        states = self.cross_out(layout.to_tokens(query, key, value, self.heads), states)
        if self.pre_norm:
            return self.feed_forward(self.norm3(states), states)
        states = self.norm2(states)
        return self.norm3(self.feed_forward(states, states))


class _FeedForward(nn.Module):
    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.linear1 = FusedLinear.of(layer.linear1, dtype, relu=True)
        self.linear2 = FusedLinear.of(layer.linear2, dtype)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The sum with `residual`, which may be overwritten with it and may be `x`."""
        return self.linear2(self.linear1(x), residual)


def _query_table(module: MultiheadAttention, query_embed: Tensor, parts: str) -> Tensor:
    """What the learned positions add to these projections of the queries' states, biases too."""
    width = module.embed_dim
    positions = query_embed @ module.in_proj_weight[: len(parts) * width].T
    positions = positions + module.in_proj_bias[: len(parts) * width]
    if parts == "q":
        return positions
    return F.pad(positions, (0, width)) + F.pad(module.in_proj_bias[2 * width :], (2 * width, 0))


def _constant_start(layer: TransformerDecoderLayer, query_embed: Tensor) -> tuple[Tensor, Tensor]:
    """The first layer's states (1, 1, E) after self-attention, and its queries (Q, E)."""
    own = layer.self_attn
    zeros = query_embed.new_zeros(1, 1, own.embed_dim)
    value = layer.norm1(zeros) if layer.pre_norm else zeros
    weight, bias = own.in_proj_weight.chunk(3)[2], own.in_proj_bias.chunk(3)[2]
    states = own.out_proj(F.linear(value, weight, bias))
    states = states if layer.pre_norm else layer.norm1(states)
    query = layer.norm2(states) if layer.pre_norm else states
    cross = layer.multihead_attn
    table = _query_table(cross, query_embed, "q")
    return states, F.linear(query[0], cross.in_proj_weight.chunk(3)[0]) + table


def _copied(norm: nn.LayerNorm, dtype: torch.dtype) -> nn.LayerNorm:
    """A norm of its own, in `dtype`, that does not learn."""
    copy = nn.LayerNorm(norm.normalized_shape, norm.eps, dtype=dtype, device="meta")
    copy = copy.to_empty(device=norm.weight.device)
    copy.load_state_dict(norm.state_dict())
    return copy.requires_grad_(False).eval()


def _detached(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.detach().to(dtype, copy=True)

"""DETR's mask head in plain terms: every query carries a copy of its image through every layer."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUPS = 8


def attention_maps(
    weights: Mapping[str, Tensor],
    states: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    nheads: int,
) -> Tensor:
    """Where each query looks in the encoder's memory (Carion et al., ECCV 2020, section 4.2).

    One softmax runs over the positions of all heads together.

    Args:
        weights: `q_linear` and `k_linear`, each with `.weight` (E, E) and `.bias` (E,).
        states: (B, Q, E), decoder states.
        memory: (B, E, h, w), the encoder's output.
        mask: (B, h, w) bool, True on padding; None where no image has any.
        nheads: heads; divides E.

    Returns:
        (B, Q, nheads, h, w).
    """
    batch, queries, width = states.shape
    q = F.linear(states, weights["q_linear.weight"], weights["q_linear.bias"])
    k = F.conv2d(memory, weights["k_linear.weight"][:, :, None, None], weights["k_linear.bias"])
    q = q.view(batch, queries, nheads, width // nheads) / math.sqrt(width // nheads)
    k = k.view(batch, nheads, width // nheads, *memory.shape[-2:])
    scores = torch.einsum("bqnc,bnchw->bqnhw", q, k)
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None], -math.inf)
    return scores.flatten(2).softmax(-1).view_as(scores)


def mask_head(
    weights: Mapping[str, Tensor], features: Tensor, attention: Tensor, pyramid: Sequence[Tensor]
) -> Tensor:
    """Mask logits of every query (Carion et al., ECCV 2020, section 4.2).

    Args:
        weights: `lay1`, `lay2`, ..., `out_lay` (3 x 3 convolutions), `gn1`, `gn2`, ... and
            `adapter1`, `adapter2`, ... (1 x 1), each with `.weight` and `.bias`.
        features: (B, E, h, w), the backbone's last stage in the transformer's width.
        attention: (B, Q, nheads, h, w).
        pyramid: (B, C_i, h_i, w_i), earlier stages of the backbone, from coarse to fine.

    Returns:
        (B, Q, H, W), H and W those of the finest level.
    """
    batch, queries = attention.shape[:2]

    def of_every_query(image_features: Tensor) -> Tensor:
        return image_features.repeat_interleave(queries, 0)

    def layer(x: Tensor, number: int) -> Tensor:
        name = f"lay{number}"
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
        norm = weights[f"gn{number}.weight"], weights[f"gn{number}.bias"]
        return F.group_norm(x, _GROUPS, *norm).relu()

    x = torch.cat((of_every_query(features), attention.flatten(0, 1)), 1)
    x = layer(layer(x, 1), 2)
    for i, level in enumerate(pyramid, start=1):
        adapted = F.conv2d(level, weights[f"adapter{i}.weight"], weights[f"adapter{i}.bias"])
        x = of_every_query(adapted) + F.interpolate(x, size=adapted.shape[-2:], mode="nearest")
        x = layer(x, i + 2)
    x = F.conv2d(x, weights["out_lay.weight"], weights["out_lay.bias"], padding=1)
    return x.view(batch, queries, *x.shape[-2:])

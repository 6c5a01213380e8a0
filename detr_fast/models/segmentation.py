"""DETR with masks: a mask for each query, from its attention and the backbone's finer stages.

Carion et al., ECCV 2020, section 4.2 and figure 8. Parameters have the names and shapes of the
original's panoptic checkpoints, and the arithmetic is the original's, reordered: what depends on
the image alone is computed once an image and not once a query, and queries pass through the head a
few at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..data.label_map import LabelMap
from ..reference.zero_outside import outside
from .detr import DETR, Samples, batch_images

_GROUPS = 8
# Activations of the queries under way; more at once is not faster.
_MEMORY_LIMIT = 128 << 20

Select = Callable[[dict[str, Any]], Sequence[Tensor]]


class DETRSegmentation(nn.Module):
    """A DETR and a mask head on top of it.

    Args:
        freeze_detr: the detector learns nothing and stays in evaluation mode; only attention maps
            and mask head do. (The original leaves dropout at work in the frozen detector.)
        attention_gain: see `MaskHead`.
        **detr_options: see `DETR`, without `exact_batches`. The mask head needs `hidden_dim` and
            `nheads` of which its group norms of 8 groups can be made.

    Attributes:
        detr: the detector.
        label_map: `LabelMap` of the classes, or None where nobody said.
        config: name and options, enough for `build_model(**config)`; set by `build_model`.

    Raises:
        ValueError: an option outside its range.
    """

    resizable = tuple(f"detr.{name}" for name in DETR.resizable)

    def __init__(self, *, freeze_detr: bool = False, attention_gain: float = 1.0, **detr_options):
        super().__init__()
        if detr_options.get("exact_batches"):
            raise ValueError(
                "exact_batches is not to be had with masks: the group norms of the mask head read "
                "the whole padded map. Use one image a batch."
            )
        self.detr = DETR(**detr_options)
        self.label_map: LabelMap | None = None
        self.config: dict | None = None
        self.freeze_detr = freeze_detr
        if freeze_detr:
            self.detr.requires_grad_(False)
            self.detr.eval()
        attention = self.transformer.decoder.layers[-1].multihead_attn
        *finer, _ = self.detr.backbone[0].stage_channels
        self.bbox_attention = AttentionMaps(attention.embed_dim, attention.num_heads)
        self.mask_head = MaskHead(
            attention.embed_dim, attention.num_heads, finer[::-1], attention_gain
        )

    @property
    def num_classes(self) -> int:
        return self.detr.num_classes

    @property
    def num_queries(self) -> int:
        return self.detr.num_queries

    @property
    def aux_loss(self) -> bool:
        return self.detr.aux_loss

    @property
    def transformer(self) -> nn.Module:
        return self.detr.transformer

    def forward(
        self, samples: Samples, return_attention: bool = False, select: Select | None = None
    ) -> dict:
        """Predicts the objects of every image and their masks.

        Args:
            samples: see `DETR.forward`.
            return_attention: see `DETR.forward`.
            select: which queries get a mask. Called with the predictions without masks, it returns
                for each image the indices of its queries, int64 (n_i,) in any order; see
                `panoptic.confident_queries` and `SetCriterion.matched_queries`. None means all.

        Returns:
            What `DETR.forward` returns, and the logits of the masks, on the grid of the backbone's
            first stage (stride 4) over the padded batch: "pred_masks" (B, Q, H, W), or with
            `select` "selected_masks", a list of (n_i, H, W), and "selected_queries", what `select`
            returned.

        Raises:
            TypeError, ValueError: see `DETR.forward`.
        """
        images, extents = batch_images(samples)
        stages, extents, pos = self.detr.backbone.pyramid(images, extents)
        outputs, decoded = self.detr.decode(stages[-1], extents, pos, return_attention)
        if select is None:
            states = list(decoded.states)
        else:
            queries = outputs["selected_queries"] = list(select(outputs))
            states = [own[index] for own, index in zip(decoded.states, queries, strict=True)]
        attention = self.bbox_attention(states, decoded.memory, extents)
        masks = self.mask_head(decoded.projected, attention, stages[-2::-1])
        if select is None:
            outputs["pred_masks"] = torch.stack(masks)
        else:
            outputs["selected_masks"] = masks
        return outputs

    def train(self, mode: bool = True) -> "DETRSegmentation":
        super().train(mode)
        if self.freeze_detr:
            self.detr.eval()
        return self


class AttentionMaps(nn.Module):
    """Where a query looks in the encoder's memory: the weights of an attention, without values.

    One softmax runs over the positions of all heads together.

    Args:
        hidden_dim: width E of states and memory.
        nheads: heads; divides E.
    """

    def __init__(self, hidden_dim: int, nheads: int):
        super().__init__()
        self.nheads = nheads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, states: Sequence[Tensor], memory: Tensor, extents: Tensor | None
    ) -> list[Tensor]:
        """Attention of some queries of every image.

        Args:
            states: for each image (n_i, E).
            memory: (B, E, h, w).
            extents: (B, 2) int64, rows and columns of each image, beyond which weights are 0; or
                None.

        Returns:
            For each image (n_i, nheads, h, w); each query's weights sum to 1 over heads and grid.
        """
        size = memory.shape[-2:]
        keys = self.k_linear(memory.flatten(2).transpose(1, 2))
        padding = [None] * len(keys) if extents is None else outside(extents, *size)
        return [
            self._weights(self.q_linear(own), keys[i], padding[i]).unflatten(-1, size)
            for i, own in enumerate(states)
        ]

    def _weights(self, queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        """(n, E) and (L, E) -> (n, nheads, L)."""
        dtype = torch.promote_types(queries.dtype, torch.float32)
        queries, keys = (
            x.unflatten(-1, (self.nheads, -1)).transpose(0, 1).to(dtype) for x in (queries, keys)
        )
        scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(1, 2)
        scores = scores.transpose(0, 1)
        if padding is not None:
            scores = scores.masked_fill(padding.flatten(), -math.inf)
        return scores.flatten(1).softmax(-1).view(scores.shape)


class MaskHead(nn.Module):
    """Convolutions with group norm from attention maps to masks, over ever finer stages.

    The result is that of `reference.mask_head`. The first convolution is linear in image and
    attention, so that its image half is the same for all queries of an image; so are the adapters.

    Args:
        hidden_dim: width E of the image's features.
        nheads: attention maps of a query.
        pyramid_channels: channels of the backbone's stages before the last, from coarse to fine.
        attention_gain: by how much the first weights of the attention maps are larger than those of
            the image. The maps' values are about one by `nheads` times the grid's cells, so that at
            1, the original's, all queries have nearly the same mask in the beginning, which takes
            long to change.

    Attributes:
        memory_limit: bytes that the activations of the queries under way may take; at least one
            query is. With gradients, activations beyond it are computed again in the backward pass.

    Raises:
        ValueError: a width that 8 groups do not divide.
    """

    def __init__(
        self,
        hidden_dim: int,
        nheads: int,
        pyramid_channels: Sequence[int],
        attention_gain: float = 1.0,
    ):
        super().__init__()
        self.memory_limit = _MEMORY_LIMIT
        levels = len(pyramid_channels)
        widths = [hidden_dim + nheads, *(hidden_dim // 2**i for i in range(1, levels + 2))]
        if any(width % _GROUPS or width == 0 for width in widths):
            raise ValueError(
                f"hidden_dim is {hidden_dim} with nheads {nheads}; the mask head over {levels} "
                f"stages would have {', '.join(map(str, widths))} channels, which must be "
                f"multiples of {_GROUPS} for its group norms."
            )
        inputs = [widths[0], *widths[:-1]]
        for i, (n, m) in enumerate(zip(inputs, widths, strict=True), start=1):
            self.add_module(f"lay{i}", nn.Conv2d(n, m, 3, padding=1))
            self.add_module(f"gn{i}", nn.GroupNorm(_GROUPS, m))
        self.out_lay = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for i, channels in enumerate(pyramid_channels, start=1):
            self.add_module(f"adapter{i}", nn.Conv2d(channels, widths[i], 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.lay1.weight[:, hidden_dim:] *= attention_gain

    def forward(
        self, features: Tensor, attention: Sequence[Tensor], pyramid: Sequence[Tensor]
    ) -> list[Tensor]:
        """Mask logits of some queries of every image.

        Args:
            features: (B, E, h, w), the backbone's last stage in the transformer's width.
            attention: for each image (n_i, nheads, h, w).
            pyramid: (B, C_i, h_i, w_i), the stages before the last, from coarse to fine.

        Returns:
            For each image (n_i, H, W), H and W those of the finest stage.
        """
        counts = [len(own) for own in attention]
        images = [i for i, count in enumerate(counts) for _ in range(count)]
        maps = torch.cat(list(attention))
        width = features.shape[1]
        shared = F.conv2d(features, self.lay1.weight[:, :width], self.lay1.bias, padding=1)
        levels = [
            self.get_submodule(f"adapter{i}")(level) for i, level in enumerate(pyramid, start=1)
        ]
        step = self._queries_at_once(shared, levels)
        masks = []
        for start in range(0, max(1, len(images)), step):
            chunk = (maps[start : start + step], images[start : start + step], shared, levels)
            if torch.is_grad_enabled() and len(images) > step:
                masks.append(checkpoint(self._masks, *chunk, use_reentrant=False))
            else:
                masks.append(self._masks(*chunk))
        return list(torch.cat(masks).split(counts))

    def _masks(
        self, maps: Tensor, images: list[int], shared: Tensor, levels: Sequence[Tensor]
    ) -> Tensor:
        """Attention maps (n, nheads, h, w) of queries of these images -> logits (n, H, W)."""
        own = _Rows(images, maps.device)
        # In place where nothing needs the value before: half the memory, and half its traffic.
        x = F.conv2d(maps, self.lay1.weight[:, -maps.shape[1] :], padding=1)
        x = self.gn1(x.add_(own(shared))).relu_()
        x = self.gn2(self.lay2(x)).relu_()
        for i, level in enumerate(levels, start=3):
            x = F.interpolate(x, size=level.shape[-2:], mode="nearest")
            x = self.get_submodule(f"lay{i}")(x.add_(own(level)))
            x = self.get_submodule(f"gn{i}")(x).relu_()
        return self.out_lay(x)[:, 0]

    def _queries_at_once(self, shared: Tensor, levels: Sequence[Tensor]) -> int:
        """How many queries' activations fit in the limit: the input, output and norm of a layer."""
        elements = 3 * shared[0].numel()
        for i, level in enumerate(levels, start=3):
            outputs = self.get_submodule(f"lay{i}").out_channels
            elements = max(elements, (level.shape[1] + 2 * outputs) * level[0, 0].numel())
        return max(1, self.memory_limit // (elements * shared.element_size()))


class _Rows:
    """Picks each query's image out of a batch; a view where all of them have the same one."""

    def __init__(self, images: list[int], device: torch.device):
        self._only = images[0] if len(set(images)) == 1 else None
        self._index = None
        if self._only is None:
            # Without waiting for a device.
            self._index = torch.tensor(images, dtype=torch.int64).to(device, non_blocking=True)

    def __call__(self, batch: Tensor) -> Tensor:
        if self._only is not None:
            return batch[self._only : self._only + 1]
        return batch[self._index]

"""A trained DETR made ready to detect: folded, fused, in 16 bits where asked, without gradients."""

import copy
import warnings
from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..models.detr import DETR, Samples, batch_images
from ..models.padding import nearest, strided
from ..ops.zero_outside import zero_outside
from .folded_resnet import FoldedResNet
from .fused_transformer import FusedTransformer
from .token_layout import PackedTokens, PaddedTokens

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Grids whose position tables are kept; COCO's validation images have 45 sizes at short side 800.
_KEPT_GRIDS = 64


class Engine(nn.Module):
    """The predictions of a `DETR` from the same images, faster.

    Weights are copied: the model can be trained on, and the engine does not follow. Beside rounding
    the arithmetic is that of the model: normalisations are folded into convolutions in float64,
    and what does not depend on the image is computed once. In 16 bits the position encoding, the
    statistics of softmax and LayerNorm, the box head and the boxes stay in float32.

    Args:
        model: a `DETR`, whose `exact_batches` the engine takes over.
        precision: "fp32", "bf16" or "fp16".
        device: where to run; by default where the model is.

    Attributes:
        precision: as given.
        exact_batches: as the model's; may be set.
        label_map, num_classes, config: the model's.

    Raises:
        ValueError: `model` is no `DETR`; an unknown precision, or fp16 on a CPU, where it is slower
            than fp32.

    Warns:
        UserWarning: bf16 on a CPU without instructions for it.
    """

    def __init__(
        self, model: DETR, precision: str = "fp32", device: torch.device | str | None = None
    ):
        super().__init__()
        if not isinstance(model, DETR):
            raise ValueError(f"an engine is made of a DETR; got a {type(model).__name__}")
        device = torch.device(device or model.query_embed.weight.device)
        check_precision(precision, device)
        self.precision = precision
        self.exact_batches = model.exact_batches
        self.label_map = model.label_map
        self.num_classes = model.num_classes
        self.config = model.config
        self.stride = model.backbone[0].stride
        self._dtype = PRECISIONS[precision]
        with torch.no_grad():
            source = copy.deepcopy(model).float()
            self.backbone = FoldedResNet(source.backbone[0].body, self._dtype)
            self.position_encoding = source.backbone[1]
            projection = source.input_proj
            self.input_weight = nn.Buffer(projection.weight.detach()[..., 0, 0].to(self._dtype))
            self.input_bias = nn.Buffer(projection.bias.detach().to(self._dtype))
            self.transformer = FusedTransformer(
                source.transformer, source.query_embed.weight, self._dtype
            )
            self.class_embed, self.bbox_embed = source.class_embed, source.bbox_embed
        self._tables: OrderedDict[tuple[int, int], list[Tensor]] = OrderedDict()
        self.to(device).eval()

    @torch.inference_mode()
    def forward(self, samples: Samples) -> dict[str, Tensor]:
        """Predicts the objects of every image.

        Args:
            samples: as `DETR.forward` takes them, in any floating type.

        Returns:
            "pred_logits" (B, Q, K + 1) and "pred_boxes" (B, Q, 4), float32.

        Raises:
            TypeError, ValueError: as `DETR.forward`.
        """
        images, extents = batch_images(samples)
        images = images.to(dtype=self._dtype, memory_format=torch.channels_last)
        if extents is not None and self.exact_batches:
            features = self.backbone(zero_outside(images, extents), extents)
            extents = strided(extents, self.stride)
        else:
            features = self.backbone(images, None)
            if extents is not None:
                extents = nearest(extents, images.shape[-2:], features.shape[-2:])
        grid = tuple(features.shape[-2:])
        if extents is not None and features.device.type == "cpu":
            layout = PackedTokens(extents.tolist())
            tables = self._packed_tables(layout)
        else:
            layout = PaddedTokens(len(features), grid, extents)
            tables = self._position_tables(grid, extents)
        tokens = nn.functional.linear(layout.tokens(features), self.input_weight, self.input_bias)
        states = self.transformer(tokens, tables, layout).float()
        return {
            "pred_logits": self.class_embed(states),
            "pred_boxes": self.bbox_embed(states).sigmoid(),
        }

    def _position_tables(self, grid: tuple[int, int], extents: Tensor | None) -> list[Tensor]:
        if extents is None and grid in self._tables:
            self._tables.move_to_end(grid)
            return self._tables[grid]
        batch = 1 if extents is None else extents.shape[0]
        shape = self.input_weight.new_empty((batch, 1, *grid), dtype=torch.float32)
        tables = self.transformer.position_tables(self.position_encoding(shape, extents))
        if extents is None:
            self._tables[grid] = tables
            if len(self._tables) > _KEPT_GRIDS:
                self._tables.popitem(last=False)
        return tables

    def _packed_tables(self, layout: PackedTokens) -> list[Tensor]:
        """The tables of each image alone, one after another; an image may be padding altogether."""
        tables = []
        for rows, columns in layout.extents:
            alone = self._position_tables((max(rows, 1), max(columns, 1)), None)
            tables.append([table[:, : rows * columns] for table in alone])
        return [torch.cat(of_layer, 1) for of_layer in zip(*tables, strict=True)]


def check_precision(precision: str, device: torch.device) -> None:
    """Raises a ValueError for a precision that does not exist or cannot win on the device."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}"
        )
    if device.type == "cpu" and precision == "fp16":
        raise ValueError("fp16 is slower than fp32 on a CPU; use bf16 or fp32, or a GPU")
    if device.type == "cpu" and precision == "bf16" and not cpu_has_bf16():
        warnings.warn(
            "this CPU has no instructions for bf16 (AVX512-BF16 or AMX): fp32 is faster on it",
            stacklevel=3,
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

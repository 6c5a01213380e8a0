"""A trained DETR made ready to detect: folded, fused, in 16 bits where asked, without gradients."""

import copy
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter

import torch
from torch import Tensor, nn

from ..models.detr import DETR, Samples, batch_images
from ..models.padding import nearest, strided
from ..ops.zero_outside import zero_outside
from .float32 import full_float32
from .folded_resnet import FoldedResNet
from .fused_transformer import FusedTransformer
from .graphs import Graphs
from .linear import FusedLinear
from .loading import Preprocess
from .output_memory import OutputMemory
from .recent import Recent
from .token_layout import PackedTokens, PaddedTokens

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# CUDA graphs that are kept. COCO's images need at most 21 canvases, see `canvas`.
MAX_GRAPHS = 25
# Bytes of position encodings that are kept: those of 154 images of 800 x 1066, in bf16 and without
# dilation. COCO's validation images have 45 sizes at short side 800.
_KEPT_POSITIONS = 64 << 20
# What a pass through the backbone costs a CPU beside its pixels, in pixels: about 7,000 for
# ResNet-50 in bf16 and 2,000 for the tiny one, on two cores of an AMD EPYC (Zen 5).
_PIXELS_OF_A_PASS = 8192


class Engine(nn.Module):
    """The predictions of a `DETR` from the same images, faster.

    Weights are copied: the model can be trained on, and the engine does not follow. Beside rounding
    the arithmetic is that of the model: normalisations are folded into convolutions in float64,
    and what does not depend on the image is computed once. In 16 bits the position encoding is
    computed in float32, and the statistics of softmax and LayerNorm, the box head and the boxes
    stay there. "fp32" is all of float32 on a GPU, too, whatever torch may round there by default.

    On CUDA it captures graphs, each for all image sizes that fit on a canvas, see `graphs`; call it
    from one stream at a time. On a CPU it keeps the memory of its large features from call to call,
    see `output_memory`.

    Args:
        model: a `DETR`, whose `exact_batches` the engine takes over.
        precision: "fp32", "bf16" or "fp16".
        device: where to run; by default where the model is.
        max_graphs: CUDA graphs that are kept, the one not used for longest is dropped first; 0 for
            no graphs.
        short_side: what the short side of images is resized to, in pixels, from which the canvases
            follow; None where images keep their size.

    Attributes:
        precision: as given.
        exact_batches: as the model's; may be set.
        label_map, num_classes, config: the model's.

    Raises:
        ValueError: `model` is no `DETR`; an unknown precision, or fp16 on a CPU, where it is slower
            than fp32; a negative `max_graphs`.

    Warns:
        UserWarning: bf16 on a CPU without instructions for it.

    Example:
        >>> engine = detr_fast.Engine(model, "bf16")
        >>> outputs = engine(images)  # what model(images) gives, the auxiliary layers left out
    """

    def __init__(
        self,
        model: DETR,
        precision: str = "fp32",
        device: torch.device | str | None = None,
        *,
        max_graphs: int = MAX_GRAPHS,
        short_side: int | None = Preprocess.short_side,
    ):
        super().__init__()
        if not isinstance(model, DETR):
            raise ValueError(f"an engine is made of a DETR; got a {type(model).__name__}")
        device = torch.device(device or model.query_embed.weight.device)
        check_precision(precision, device)
        if max_graphs < 0:
            raise ValueError(f"max_graphs is {max_graphs}; expected 0 or more")
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
            self.input_proj = FusedLinear(
                projection.weight[..., 0, 0], projection.bias, self._dtype
            )
            self.transformer = FusedTransformer(
                source.transformer, source.query_embed.weight, self._dtype
            )
            self.class_embed, self.bbox_embed = source.class_embed, source.bbox_embed
        self._max_graphs, self._short_side = max_graphs, short_side
        self._positions: Recent[tuple[int, int], Tensor] = Recent(
            _KEPT_POSITIONS, attrgetter("nbytes")
        )
        self._graphs: Graphs | None = None
        self.to(device).eval()

    @property
    def captures(self) -> int:
        """CUDA graphs captured since the engine came to its device."""
        return 0 if self._graphs is None else self._graphs.captures

    @torch.inference_mode()
    def capture(
        self, sizes: Iterable[tuple[int, int]], batch_size: int = 1, *, fitted: bool = False
    ) -> None:
        """Captures CUDA graphs ahead, so that no call takes the time. Does nothing without CUDA.

        Args:
            sizes: (height, width) of images in pixels, or of the batches they come in.
            batch_size: images in a batch.
            fitted: capture graphs for batches of exactly these sizes without padding, a little
                faster where images are all of a few sizes; otherwise for the canvases that these
                sizes fall on, which serve others too.

        Raises:
            ValueError: that is more graphs than `max_graphs`.
        """
        if self._graphs is not None:
            with self._arithmetic():
                self._graphs.capture(self, batch_size, list(sizes), fitted)

    @torch.inference_mode()
    def forward(self, samples: Samples) -> dict[str, Tensor]:
        """Predicts the objects of every image.

        Args:
            samples: as `DETR.forward` takes them, in any floating type.

        Returns:
            "pred_logits" (B, Q, K + 1) and "pred_boxes" (B, Q, 4), float32.

        Raises:
            TypeError, ValueError: as `DETR.forward`; also for images on another device.
        """
        images, extents = batch_images(samples)
        device = self.input_proj.weight.device
        if images.device != device:
            raise ValueError(
                f"the images are on {images.device} and the engine on {device}: move one of them"
            )
        with self._arithmetic():
            if self._graphs is not None:
                outputs = self._graphs.run(self, images, extents)
                if outputs is not None:
                    return outputs
            # In one step this takes three times as long on a CPU.
            images = images.to(self._dtype).contiguous(memory_format=torch.channels_last)
            positions = self.positions(tuple(images.shape[-2:])) if extents is None else None
            with self._memory.used():
                return self.run(images, extents, positions, self.exact_batches)

    def _arithmetic(self) -> AbstractContextManager:
        """What "fp32" means on a GPU, where torch would round."""
        rounds = self.precision == "fp32" and self.input_proj.weight.is_cuda
        return full_float32() if rounds else nullcontext()

    def run(
        self, images: Tensor, extents: Tensor | None, positions: Tensor | None, exact: bool
    ) -> dict[str, Tensor]:
        """`forward` after all conversions; on CUDA nothing here reads what the tensors hold.

        Args:
            images: (B, 3, H, W) in the engine's type, channels last.
            extents: (B, 2) int64, rows and columns of each image; None without padding.
            positions: what `positions` gives, without padding; None with it.
            exact: see `DETR.exact_batches`.

        Returns:
            As `forward`.
        """
        if extents is not None and exact:
            features = self._exact_features(images, extents)
            extents = strided(extents, self.stride)
        else:
            features = self.backbone(images, None)
            if extents is not None:
                extents = nearest(extents, images.shape[-2:], features.shape[-2:])
        if extents is not None and images.is_cpu:
            layout = PackedTokens(extents.tolist())
            positions = self._packed_positions(layout)
        else:
            grid = tuple(features.shape[-2:])
            layout = PaddedTokens(len(features), grid, extents)
            if positions is None:
                positions = self._encoded(len(features), grid, extents)
        tokens = self.input_proj(layout.tokens(features))
        states = self.transformer(tokens, positions, layout).float()
        return {
            "pred_logits": self.class_embed(states),
            "pred_boxes": self.bbox_embed(states).sigmoid(),
        }

    def _exact_features(self, images: Tensor, extents: Tensor) -> Tensor | list[Tensor]:
        """The features that each image has alone: (B, C, Hf, Wf), or one (C, hf, wf) an image."""
        if images.is_cpu:
            area = images.shape[-2] * images.shape[-1]
            padding = (area - extents.prod(1)).sum().item()
            if padding > _PIXELS_OF_A_PASS * len(images):
                # An image of padding alone has no tokens in the end, but can be computed.
                sizes = extents.clamp(min=1).tolist()
                own = zip(images.split(1), sizes, strict=True)
                return [self.backbone(image[..., :h, :w], None)[0] for image, (h, w) in own]
        return self.backbone(zero_outside(images, extents), extents)

    def positions(self, canvas: tuple[int, int]) -> Tensor:
        """Where the tokens of a canvas (H, W) without padding stand, (1, L, E), computed once."""
        return self._positions_of(tuple(-(-side // self.stride) for side in canvas))

    def _positions_of(self, grid: tuple[int, int]) -> Tensor:
        positions = self._positions.get(grid)
        if positions is None:
            positions = self._encoded(1, grid, None)
            self._positions.put(grid, positions)
        return positions

    def _encoded(self, batch: int, grid: tuple[int, int], extents: Tensor | None) -> Tensor:
        """The position encoding (B, L, E) of a grid, computed in float32."""
        shape = self.input_proj.weight.new_empty((batch, 1, *grid), dtype=torch.float32)
        encoding = self.position_encoding(shape, extents)
        return encoding.flatten(2).transpose(1, 2).to(self._dtype)

    def _packed_positions(self, layout: PackedTokens) -> Tensor:
        """Those of each image alone, one after another; an image may be padding altogether."""
        return torch.cat(
            [
                self._positions_of((max(rows, 1), max(columns, 1)))[:, : rows * columns]
                for rows, columns in layout.extents
            ],
            1,
        )

    def _apply(self, *arguments, **options) -> "Engine":
        """Where modules move; what was made of their tensors stays behind."""
        self._graphs = None
        self._positions.clear()
        self._memory = OutputMemory()
        super()._apply(*arguments, **options)
        if self.input_proj.weight.is_cuda and self._max_graphs > 0:
            self._graphs = Graphs(
                self._max_graphs, self._short_side, self._dtype, self.input_proj.weight.device
            )
        return self


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

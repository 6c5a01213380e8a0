"""DETR: images to a fixed set of predictions (Carion et al., ECCV 2020)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batching import NestedTensor, nested_tensor_from_images
from ..data.label_map import LabelMap
from .backbone import Backbone, EncodedBackbone
from .padding import image_extents
from .position_encoding import LearnedPositionEncoding, SinePositionEncoding
from .suggestion import did_you_mean
from .transformer import Transformer

Samples = NestedTensor | Tensor | Sequence[Tensor]


class DETR(nn.Module):
    """The detection model. Every option has the name of the original `main.py` where it has one.

    Parameters and buffers have the names and shapes of the original's checkpoints.

    Args:
        num_classes: classes K without no-object; the class head has K + 1 outputs.
        num_queries: object queries Q, the largest number of objects found in an image.
        hidden_dim: width of the transformer, a multiple of `nheads` and of 4.
        nheads: attention heads.
        enc_layers: encoder layers, 0 or more.
        dec_layers: decoder layers, 1 or more.
        dim_feedforward: hidden width of the transformer's feed-forward blocks.
        dropout: dropout probability in the transformer, in [0, 1).
        pre_norm: normalise before each block of the transformer instead of after it.
        position_embedding: "sine" or "learned" (at most 50 x 50 tokens).
        dilation: dilate the last stage of the backbone instead of striding (DC5).
        aux_loss: return the predictions of every decoder layer, not of the last alone.
        exact_batches: give every image of a padded batch the predictions that it gets alone. The
            original does not, and its published AP is that of its own rule; `exact_batches` can
            also be set as an attribute later.
        backbone: a torchvision ResNet's name, or "resnet_tiny".
        backbone_norm: "frozen" or "batch", see `Backbone`.
        backbone_stage: last stage of the ResNet used, 2, 3 or 4.
        train_backbone: whether the backbone learns, see `Backbone`.
        backbone_weights: None, or "imagenet" for torchvision's (downloaded).

    Attributes:
        label_map: `LabelMap` of the classes, or None where nobody said.
        config: name and options, enough for `build_model(**config)`; set by `build_model`.

    Raises:
        ValueError: an option outside its range.
    """

    # Modules whose size follows the data set; checkpoints of other sizes may leave them fresh.
    resizable = ("class_embed", "query_embed")

    def __init__(
        self,
        *,
        num_classes: int = 91,
        num_queries: int = 100,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        position_embedding: str = "sine",
        dilation: bool = False,
        aux_loss: bool = True,
        exact_batches: bool = False,
        backbone: str = "resnet50",
        backbone_norm: str = "frozen",
        backbone_stage: int = 4,
        train_backbone: bool = True,
        backbone_weights: str | None = None,
    ):
        super().__init__()
        require_at_least(
            1,
            num_classes=num_classes,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            nheads=nheads,
            dec_layers=dec_layers,
            dim_feedforward=dim_feedforward,
        )
        require_at_least(0, enc_layers=enc_layers)
        if hidden_dim % nheads or hidden_dim % 4:
            raise ValueError(
                f"hidden_dim is {hidden_dim} with nheads {nheads}; it must be a multiple of both "
                "nheads and 4 (sine and cosine of two axes)."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1).")
        encodings = {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}
        if position_embedding not in encodings:
            raise ValueError(
                f"position_embedding is {position_embedding!r}; "
                f"{did_you_mean(position_embedding, encodings)}."
            )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.aux_loss = aux_loss
        self.exact_batches = exact_batches
        self.label_map: LabelMap | None = None
        self.config: dict | None = None

        self.transformer = Transformer(
            hidden_dim, nheads, enc_layers, dec_layers, dim_feedforward, dropout, pre_norm
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        features = Backbone(
            backbone,
            norm=backbone_norm,
            stage=backbone_stage,
            dilation=dilation,
            trainable=train_backbone,
            weights=backbone_weights,
        )
        self.input_proj = nn.Conv2d(features.num_channels, hidden_dim, kernel_size=1)
        self.backbone = EncodedBackbone(features, encodings[position_embedding](hidden_dim // 2))

    def forward(self, samples: Samples, return_attention: bool = False) -> dict:
        """Predicts the objects of every image.

        Args:
            samples: a list of CHW images of any sizes, a `NestedTensor`, or a tensor
                (B, 3, H, W) without padding; floating point, normalised by ImageNet's mean and
                standard deviation, in the model's dtype and on its device.
            return_attention: add "attention", see `Transformer.forward`. The predictions are
                bit for bit the ones without it.

        Returns:
            "pred_logits" (B, Q, K + 1), the last class being no-object; "pred_boxes" (B, Q, 4),
            cxcywh relative to the image without its padding, in (0, 1); and with `aux_loss`
            "aux_outputs", the same two of every earlier decoder layer, first layer first.

        Raises:
            TypeError: samples of another type, or images that are not floating point.
            ValueError: a tensor of another rank, other than 3 channels, or no image.
        """
        images, extents = batch_images(samples)
        return self.decode(*self.backbone(images, extents, self.exact_batches), return_attention)[0]

    def decode(
        self, features: Tensor, extents: Tensor | None, pos: Tensor, return_attention: bool = False
    ) -> tuple[dict, "Decoded"]:
        """Predictions from the features of a batch, and what a mask head reads beside them.

        Args:
            features: (B, C, Hf, Wf), the backbone's last stage.
            extents: (B, 2) int64, rows and columns of each image on that grid; None where no image
                is padded.
            pos: (B, E, Hf, Wf), position encoding of the grid.
            return_attention: see `forward`.

        Returns:
            What `forward` returns, and `Decoded`.
        """
        projected = self.input_proj(features)
        states, memory, attention = self.transformer(
            projected, extents, self.query_embed.weight, pos, return_attention
        )
        decoded = Decoded(projected, states[-1], memory)
        if not self.aux_loss:
            states = states[-1:]
        logits, boxes = self._heads(states)
        outputs = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if self.aux_loss:
            outputs["aux_outputs"] = [
                {"pred_logits": layer_logits, "pred_boxes": layer_boxes}
                for layer_logits, layer_boxes in zip(logits[:-1], boxes[:-1], strict=True)
            ]
        if return_attention:
            outputs["attention"] = attention
        return outputs, decoded

    def _heads(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States (S, B, Q, E) -> logits (S, B, Q, K + 1) and boxes (S, B, Q, 4)."""
        # The heads leave autocast: 16-bit boxes are off by up to 4 pixels, and they cost nothing.
        states = states.to(self.class_embed.weight.dtype)
        with without_autocast(states.device.type):
            return self.class_embed(states), self.bbox_embed(states).sigmoid()


class Decoded(NamedTuple):
    """Where the transformer arrived.

    Attributes:
        projected: (B, E, Hf, Wf), the backbone's features in the transformer's width.
        states: (B, Q, E), normalised states of the last decoder layer.
        memory: (B, E, Hf, Wf), the encoder's output.
    """

    projected: Tensor
    states: Tensor
    memory: Tensor


class MLP(nn.Module):
    """Linear layers with ReLU between them, (..., input_dim) -> (..., output_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def batch_images(samples: Samples) -> tuple[Tensor, Tensor | None]:
    """Any input of a model as one batch.

    Args:
        samples: a list of CHW images, a `NestedTensor`, or a tensor (B, 3, H, W).

    Returns:
        Images (B, 3, H, W) and their extents (B, 2) int64, rows and columns of each in pixels; None
        where the shapes alone show that no image is padded.

    Raises:
        TypeError, ValueError: see `DETR.forward`.
    """
    mask = None
    if isinstance(samples, NestedTensor):
        images, mask = samples.decompose()
    elif isinstance(samples, Tensor):
        images = samples
    elif isinstance(samples, Sequence) and all(isinstance(image, Tensor) for image in samples):
        images, mask = nested_tensor_from_images(samples).decompose()
        if len({image.shape for image in samples}) == 1:
            mask = None
    else:
        kind = type(samples).__name__
        if isinstance(samples, Sequence) and not isinstance(samples, str):
            kind += f" with {', '.join(sorted({type(image).__name__ for image in samples}))}"
        raise TypeError(
            f"samples is a {kind}; expected a list of CHW tensors, a NestedTensor, or a tensor "
            "(B, 3, H, W). For files, PIL images and arrays use detr_fast.Detector."
        )
    if images.ndim != 4:
        raise ValueError(
            f"samples is a tensor of shape {tuple(images.shape)}; expected (B, 3, H, W), or a "
            "list of (3, H, W) tensors. For one image pass [image]."
        )
    if not images.is_floating_point():
        raise TypeError(
            f"the images are {images.dtype}; expected floating point, divided by 255 and "
            "normalised by ImageNet's mean and standard deviation."
        )
    if images.shape[1] != 3:
        raise ValueError(
            f"the images have {images.shape[1]} channels (shape {tuple(images.shape)}); "
            "expected 3, RGB, in the order (B, 3, H, W)."
        )
    if 0 in images.shape:
        raise ValueError(f"the batch has shape {tuple(images.shape)}; no axis may be empty.")
    return images, None if mask is None else image_extents(mask)


def require_at_least(minimum: int, **options: int) -> None:
    """Raises a ValueError that names the first option that is not an integer >= `minimum`."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least {minimum}.")


def without_autocast(device_type: str) -> torch.autocast:
    """A context in which operations run in the dtype of their inputs."""
    # Autocast knows no meta device; tensors there have shapes only and run in no precision.
    return torch.autocast("cpu" if device_type == "meta" else device_type, enabled=False)

"""The paper's demonstration model: DETR in fifty lines of plain PyTorch (appendix A.6)."""

import torch
from torch import Tensor, nn

from ..data.label_map import LabelMap
from .backbone import Backbone
from .detr import Samples, batch_images, require_at_least
from .position_encoding import learned_grid


class DETRDemo(nn.Module):
    """A ResNet-50, `torch.nn.Transformer` and two linear heads.

    It differs from `DETR`: positions are learned and added once, at the encoder's input, to
    values too; the backbone has BatchNorm that learns; a box is one linear layer; there are no
    auxiliary outputs. It knows no masks, so that the images of a batch must share one size, of
    at most 1600 pixels a side.

    Args:
        num_classes: classes K without no-object.
        num_queries: object queries Q.
        hidden_dim: width of the transformer.
        nheads: attention heads; divides `hidden_dim`.
        enc_layers: encoder layers.
        dec_layers: decoder layers.
        backbone_weights: None, or "imagenet" for torchvision's (downloaded).

    Attributes:
        label_map: `LabelMap` of the classes, or None where nobody said.
        config: name and options, enough for `build_model(**config)`; set by `build_model`.

    Raises:
        ValueError: an option outside its range.
    """

    resizable = ("linear_class",)

    def __init__(
        self,
        *,
        num_classes: int = 91,
        num_queries: int = 100,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        backbone_weights: str | None = None,
    ):
        super().__init__()
        require_at_least(
            1,
            num_classes=num_classes,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            nheads=nheads,
            enc_layers=enc_layers,
            dec_layers=dec_layers,
        )
        if hidden_dim % nheads or hidden_dim % 2:
            raise ValueError(
                f"hidden_dim is {hidden_dim} with nheads {nheads}; it must be even and a multiple "
                "of nheads."
            )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_map: LabelMap | None = None
        self.config: dict | None = None
        resnet = Backbone("resnet50", norm="batch", weights=backbone_weights)
        self.backbone = resnet.body
        self.conv = nn.Conv2d(resnet.num_channels, hidden_dim, 1)
        self.transformer = nn.Transformer(
            hidden_dim, nheads, enc_layers, dec_layers, batch_first=True
        )
        self.linear_class = nn.Linear(hidden_dim, num_classes + 1)
        self.linear_bbox = nn.Linear(hidden_dim, 4)
        self.query_pos = nn.Parameter(torch.rand(num_queries, hidden_dim))
        self.row_embed = nn.Parameter(torch.rand(50, hidden_dim // 2))
        self.col_embed = nn.Parameter(torch.rand(50, hidden_dim // 2))

    def forward(self, samples: Samples) -> dict[str, Tensor]:
        """Predicts the objects of every image.

        Args:
            samples: as `DETR.forward` takes them, but all images of one size.

        Returns:
            "pred_logits" (B, Q, K + 1) and "pred_boxes" (B, Q, 4), see `DETR.forward`.

        Raises:
            TypeError: see `DETR.forward`.
            ValueError: see `DETR.forward`; also images of different sizes, or a feature map of
                more than 50 tokens a side.
        """
        images, extents = batch_images(samples)
        canvas = images.shape[-2:]
        if extents is not None and any(tuple(extent) != canvas for extent in extents.tolist()):
            raise ValueError(
                "the batch holds images of different sizes, but detr_demo has no masks and would "
                "see the padding as image; pass images of one size, or one at a time."
            )
        features = self.conv(self.backbone(images))
        pos = learned_grid(self.row_embed, self.col_embed, features)
        # The published weights were trained with this factor between image and position.
        tokens = (pos + 0.1 * features).flatten(2).transpose(1, 2)
        states = self.transformer(tokens, self.query_pos.expand(len(images), -1, -1))
        return {
            "pred_logits": self.linear_class(states),
            "pred_boxes": self.linear_bbox(states).sigmoid(),
        }

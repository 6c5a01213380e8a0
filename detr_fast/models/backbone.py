"""The convolutional backbone: a torchvision ResNet without its head, on batches with padding."""

from functools import partial

import torchvision.models
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

from .padded_resnet import padded_resnet
from .padding import nearest
from .suggestion import did_you_mean

_NORMS = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}


class Backbone(nn.Module):
    """The stages of a ResNet up to `stage`, under torchvision's parameter names in `body`.

    Args:
        name: a torchvision ResNet ("resnet50", "resnet101", ...) or "resnet_tiny", one
            `BasicBlock` per stage.
        norm: "frozen" for FrozenBatchNorm2d, whose statistics and affine parameters are buffers,
            or "batch" for BatchNorm2d that learns.
        stage: last stage kept, 2 (stride 8), 3 (16) or 4 (32).
        dilation: replace the stride of the last stage by dilation, which halves the stride
            (DETR's DC5 models).
        trainable: whether the convolutions learn. With "frozen" norms the stem and the first
            stage never do (they come from ImageNet and DETR keeps them); with "batch" all do.
        weights: None for random weights, "imagenet" for torchvision's IMAGENET1K_V1.

    Attributes:
        num_channels: channels of the feature map.
        stage_channels: channels of every stage kept, first stage first.
        stride: pixels per feature, along each axis.

    Raises:
        ValueError: unknown name, norm or weights, a stage other than 2, 3 and 4, or dilation in a
            ResNet of basic blocks.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: str = "frozen",
        stage: int = 4,
        dilation: bool = False,
        trainable: bool = True,
        weights: str | None = None,
    ):
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"backbone_norm is {norm!r}; {did_you_mean(norm, _NORMS)}.")
        if stage not in (2, 3, 4):
            raise ValueError(
                f"backbone_stage is {stage!r}; it must be 2 (stride 8), 3 (16) or 4 (32)."
            )
        resnet = _resnet(name, norm, stage if dilation else None, weights)
        kept = ["conv1", "bn1", "relu", "maxpool", *(f"layer{i}" for i in range(1, stage + 1))]
        self.body = nn.Sequential()
        for child in kept:
            self.body.add_module(child, getattr(resnet, child))
        self.stride = 2 ** (stage + 1 - bool(dilation))
        self.stage_channels = tuple(
            _out_channels(module) for name, module in self.body.named_children() if _is_stage(name)
        )
        self.num_channels = self.stage_channels[-1]
        self.trainable = trainable
        fixed = ("conv1", "bn1", "layer1") if norm == "frozen" else ()
        for parameter_name, parameter in self.body.named_parameters():
            parameter.requires_grad_(trainable and not parameter_name.startswith(fixed))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.body(images)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The features of every stage, first stage (stride 4) first; the last is `forward`'s."""
        features, x = [], images
        for name, module in self.body.named_children():
            x = module(x)
            if _is_stage(name):
                features.append(x)
        return features

    def train(self, mode: bool = True) -> "Backbone":
        # A backbone that does not learn must not drift through its running statistics either.
        return super().train(mode and self.trainable)


class EncodedBackbone(nn.Sequential):
    """Backbone and position encoding, numbered 0 and 1 as in DETR's checkpoints."""

    def __init__(self, backbone: Backbone, position_encoding: nn.Module):
        super().__init__(backbone, position_encoding)

    def forward(
        self, images: Tensor, extents: Tensor | None, exact: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features, the extents of the images on their grid, and their position encoding.

        Args:
            images: (B, 3, H, W), normalised.
            extents: (B, 2) int64, rows and columns of each image in pixels; None where no image is
                padded.
            exact: give each image the features and the extents that it has alone, see
                `padded_resnet`; otherwise what the original gives it, see `padding.nearest`.

        Returns:
            Features (B, C, Hf, Wf), extents (B, 2) on their grid or None, and their position
            encoding (B, E, Hf, Wf).
        """
        backbone = self[0]
        if extents is None or not exact:
            return self._encoded(backbone(images), images, extents)
        features, extents = padded_resnet(backbone.body, images, extents)
        return features, extents, self[1](features, extents)

    def pyramid(
        self, images: Tensor, extents: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """`forward` with the features of every stage, first stage first, for a mask head."""
        stages = self[0].stages(images)
        _, extents, encoding = self._encoded(stages[-1], images, extents)
        return stages, extents, encoding

    def _encoded(
        self, features: Tensor, images: Tensor, extents: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if extents is not None:
            extents = nearest(extents, images.shape[-2:], features.shape[-2:])
        return features, extents, self[1](features, extents)


def _resnet(name: str, norm: str, dilated_stage: int | None, weights: str | None) -> ResNet:
    if weights not in (None, "imagenet"):
        raise ValueError(f"backbone_weights is {weights!r}; it must be None or 'imagenet'.")
    options = {"norm_layer": _NORMS[norm]}
    if dilated_stage is not None:
        options["replace_stride_with_dilation"] = [stage == dilated_stage for stage in (2, 3, 4)]
    names = [
        model
        for model in torchvision.models.list_models(module=torchvision.models)
        if torchvision.models.get_model_builder(model).__module__ == ResNet.__module__
    ]
    if name == "resnet_tiny":
        if weights is not None:
            raise ValueError(
                "backbone_weights is 'imagenet', but nobody trained resnet_tiny on it."
            )
        build = partial(ResNet, BasicBlock, [1, 1, 1, 1])
    elif name in names:
        build = torchvision.models.get_model_builder(name)
        if weights is not None:
            options["weights"] = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    else:
        raise ValueError(
            f"backbone {name!r} is unknown; {did_you_mean(name, ['resnet_tiny', *names])}."
        )
    try:
        return build(**options)
    except NotImplementedError as error:
        raise ValueError(
            f"backbone {name!r} consists of basic blocks, which cannot be dilated; "
            "use dilation=False or a ResNet of bottlenecks (resnet50 and larger)."
        ) from error


def _is_stage(name: str) -> bool:
    return name.startswith("layer")


def _out_channels(stage: nn.Sequential) -> int:
    convolutions = [module for module in stage[-1].modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels

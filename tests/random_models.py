"""Random models in which nothing is trivial."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detr_fast import build_model


def model_with_statistics(name: str, **options) -> nn.Module:
    """A random model with normalisations far from the identity and features of up to about 7."""
    torch.manual_seed(0)
    options = {"num_classes": 7, "enc_layers": 2, "dec_layers": 2, **options}
    model = build_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for buffer, low, high in (
                (module.weight, 0.4, 1.0),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(buffer, low, high)
    return model

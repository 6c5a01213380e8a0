"""Pictures of nothing, which still differ from place to place."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Fine noise alone would look the same in every receptive field.
_PATCH = 64


def noise_image(height: int, width: int, seed: int) -> Tensor:
    """Patches of random colours, blurred into each other, with grain: (3, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(1, 3, -(-height // _PATCH), -(-width // _PATCH), generator=generator)
    colours = F.interpolate(patches, size=(height, width), mode="bilinear")[0]
    grain = torch.rand(3, height, width, generator=generator)
    return (255 * (0.9 * colours + 0.1 * grain)).to(torch.uint8)

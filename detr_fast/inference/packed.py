"""Weights in the order that oneDNN computes with, made once and not in every call."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def onednn_takes(x: Tensor) -> bool:
    """Whether oneDNN multiplies tensors like this one here; bfloat16 it refuses on older CPUs."""
    if not x.is_cpu or not torch.backends.mkldnn.is_available():
        return False
    bf16 = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32 or bf16


class PackedWeights(nn.Module):
    """A module that keeps a packed copy of its weights, as long as it stays where it is."""

    def __init__(self):
        super().__init__()
        self._packed: Tensor | None = None

    def packed(self, pack: Callable[[], Tensor]) -> Tensor:
        """The packed weights, made by `pack` when there are none."""
        if self._packed is None:
            self._packed = pack()
        return self._packed

    def __getstate__(self) -> dict:
        """Packed weights can be neither copied nor sent to another process."""
        return {**self.__dict__, "_packed": None}

    def _apply(self, *arguments, **options) -> "PackedWeights":
        """Where modules move; the packed weights are those of before."""
        self._packed = None
        return super()._apply(*arguments, **options)

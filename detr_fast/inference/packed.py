"""Weights in the order that they are multiplied in, made once and not in every call."""

import ctypes
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .recent import Recent

# Sizes of what comes in whose order is remembered.
_KEPT_SIZES = 256
# Bytes at the beginning of packed weights that orders are told apart by, since what oneDNN says of
# an order has bytes in it that mean nothing. Were two taken for one, oneDNN would reorder, and the
# result be the same.
_TELLING_BYTES = 1 << 16


def onednn_takes(x: Tensor) -> bool:
    """Whether oneDNN multiplies tensors like this one here; bfloat16 it refuses on older CPUs."""
    if not x.is_cpu or not torch.backends.mkldnn.is_available():
        return False
    bf16 = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32 or bf16


class PackedWeights(nn.Module):
    """A module that keeps packed copies of its weights, as long as it stays where it is.

    The order that oneDNN wants may depend on the size of what comes in, and weights in another it
    reorders in every call, which can take many times as long as the product itself. Orders are few,
    and each is kept once. Other kernels have one order for all sizes.
    """

    def __init__(self):
        super().__init__()
        self._kept = _Kept()

    def packed_for_size(self, size: Hashable, pack: Callable[[], Tensor]) -> Tensor:
        """oneDNN's weights for inputs of a size, made by `pack` when there are none.

        Args:
            size: what the order may depend on, of the inputs: their shape or their number of rows.
            pack: gives weights that are oneDNN's own.
        """
        weights = self._kept.of_size.get(size)
        if weights is None:
            made = pack()
            weights = self._kept.of_order.setdefault(beginning(made), made)
            self._kept.of_size.put(size, weights)
        return weights

    def packed_for_all_sizes(self, pack: Callable[[], Tensor]) -> Tensor:
        """Another kernel's weights for inputs of all sizes, made by `pack` when there are none."""
        if self._kept.of_all_sizes is None:
            self._kept.of_all_sizes = pack()
        return self._kept.of_all_sizes

    def __getstate__(self) -> dict:
        """Those of oneDNN can be neither copied nor sent to another process; none are."""
        return {**self.__dict__, "_kept": _Kept()}

    def _apply(self, *arguments, **options) -> "PackedWeights":
        """Where modules move; the packed weights are those of before."""
        self._kept = _Kept()
        return super()._apply(*arguments, **options)


@dataclass
class _Kept:
    """The copies of a module's weights, none at first."""

    of_all_sizes: Tensor | None = None
    of_size: Recent[Hashable, Tensor] = field(default_factory=lambda: Recent(_KEPT_SIZES))
    of_order: dict[bytes, Tensor] = field(default_factory=dict)


def beginning(packed: Tensor) -> bytes:
    """The first bytes of a tensor that is oneDNN's own."""
    count = min(torch.ops.mkldnn._nbytes(packed), _TELLING_BYTES)
    return ctypes.string_at(torch.ops.mkldnn.data_ptr(packed), count)

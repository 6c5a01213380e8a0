"""Where the measurements run, and at which size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """A device, and the sizes and compilers that fit it.

    On "cpu" everything is tiny, Triton interprets, and `torch.compile` traces without generating
    code: that shows that the benchmarks work, and measures nothing.

    Attributes:
        device: "cuda" or "cpu".
    """

    device: str

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def size(self, full, tiny):
        """`full` on a GPU, `tiny` on a CPU."""
        return full if self.on_gpu else tiny

    def compile(self, function: Callable, graphs: bool = True) -> Callable:
        """`torch.compile(function, mode="max-autotune")`, on a CPU without code generation.

        Args:
            graphs: whether it may capture CUDA graphs of its own.
        """
        if not self.on_gpu:
            return torch.compile(function, backend="eager")
        return torch.compile(function, mode="max-autotune" + "-no-cudagraphs" * (not graphs))

"""CUDA graphs of an engine: one for each batch size and canvas, for all images that fit on it.

A batch is copied to the fixed input of its graph, its extents with it, and the graph is replayed:
one launch in place of hundreds, and nothing waits for the device.

Where an image gets what it gets alone, that is in exact batches and in any batch without padding,
more padding changes nothing, and the canvas is rounded up so that few graphs serve all sizes; they
are captured when they are first needed. A batch that is padded as in the original keeps its canvas,
because its result depends on it. Such a canvas seldom comes again: it is captured when it does.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .canvas import canvas
from .recent import Recent

Outputs = dict[str, Tensor]
Replay = Callable[[], Outputs]
# Takes a function that reads fixed tensors and gives one that does the same again, which returns
# the same tensors every time, with other numbers in them.
Capture = Callable[[Callable[[], Outputs]], Replay]

# Canvases that came once, remembered to know when one comes again.
_REMEMBERED = 256
# Before a capture: once to compile kernels and to choose among them, once with those chosen.
_WARM_UPS = 2


class Network(Protocol):
    """What graphs are captured of; see `Engine`."""

    exact_batches: bool

    def run(
        self, images: Tensor, extents: Tensor | None, positions: Tensor | None, exact: bool
    ) -> Outputs: ...

    def positions(self, canvas: tuple[int, int]) -> Tensor: ...


class Shape(NamedTuple):
    """What a graph is for.

    Attributes:
        batch: number of images.
        canvas: height and width in pixels.
        padded: whether images may end before the canvas does.
        exact: whether the padding changes nothing.
    """

    batch: int
    canvas: tuple[int, int]
    padded: bool
    exact: bool


class Graphs:
    """The graphs of one engine.

    They share their memory and are replayed on the caller's stream, so that calls must come from
    one stream at a time.

    Args:
        limit: graphs that are kept, at least 1; the one not used for longest goes first.
        short_side: of images in pixels, see `canvas`.
        dtype: of the images that the engine takes.
        device: where it runs.
        new_capture: makes what captures; called whenever there is no graph, as then none shares its
            memory.

    Attributes:
        captures: how many graphs were captured so far.
    """

    def __init__(
        self,
        limit: int,
        short_side: int | None,
        dtype: torch.dtype,
        device: torch.device,
        new_capture: Callable[[], Capture] | None = None,
    ):
        self.captures = 0
        self._arguments = (limit, short_side, dtype, device, new_capture)
        self._short_side = short_side
        self._new_capture = new_capture or partial(CudaCapture, device)
        self._graphs: Recent[Shape, _Graph] = Recent(limit)
        self._came_once: Recent[Shape, None] = Recent(_REMEMBERED)
        self._pixels = torch.empty(0, dtype=dtype, device=device)

    def __len__(self) -> int:
        return len(self._graphs)

    def __reduce__(self) -> tuple:
        """A copy, of another engine, begins without graphs."""
        return Graphs, self._arguments

    def run(self, network: Network, images: Tensor, extents: Tensor | None) -> Outputs | None:
        """Runs a batch through its graph, capturing it if need be.

        Args:
            network: always the same one.
            images: (B, 3, H, W), in any floating type and memory format.
            extents: (B, 2) int64, rows and columns of each image; None without padding.

        Returns:
            Tensors of the caller's own; None for a batch that gets no graph.
        """
        batch, _, *size = images.shape
        shape = self._shape(network, batch, tuple(size), extents is not None)
        graph = self._graphs.get(shape)
        if graph is None:
            if not shape.exact and shape not in self._came_once:
                self._came_once.put(shape, None)
                return None
            graph = self._captured(network, shape)
        graph.fill(images, extents)
        return {name: output.clone() for name, output in graph.replay().items()}

    def capture(
        self, network: Network, batch: int, sizes: list[tuple[int, int]], fitted: bool
    ) -> None:
        """Captures graphs ahead; see `Engine.capture`.

        Raises:
            ValueError: more graphs than are kept.
        """
        canvases = {tuple(size) if fitted else canvas(*size, self._short_side) for size in sizes}
        shapes = {Shape(batch, size, padded=not fitted, exact=True) for size in canvases}
        if len(shapes) > self._graphs.limit:
            raise ValueError(
                f"these sizes need {len(shapes)} graphs, and max_graphs is {self._graphs.limit}: "
                "name fewer sizes or raise it"
            )
        # The largest first, whose memory the others then find.
        for shape in sorted(shapes, key=lambda shape: -shape.canvas[0] * shape.canvas[1]):
            if self._graphs.get(shape) is None:
                self._captured(network, shape)

    def _shape(self, network: Network, batch: int, size: tuple[int, int], padded: bool) -> Shape:
        exact = network.exact_batches or not padded
        own = Shape(batch, size, padded, exact)
        if own in self._graphs or not exact:
            return own
        return Shape(batch, canvas(*size, self._short_side), padded=True, exact=True)

    def _captured(self, network: Network, shape: Shape) -> "_Graph":
        if len(self._graphs) == 0:
            self._capture = self._new_capture()
        extents = positions = None
        if shape.padded:
            extents = torch.tensor([shape.canvas] * shape.batch, device=self._pixels.device)
        else:
            positions = network.positions(shape.canvas)
        images = self._images(shape)
        replay = self._capture(lambda: network.run(images, extents, positions, shape.exact))
        graph = _Graph(images, extents, positions, replay)
        self.captures += 1
        self._graphs.put(shape, graph)
        return graph

    def _images(self, shape: Shape) -> Tensor:
        """The fixed input (B, 3, H, W), channels last: all graphs begin at the same memory."""
        size = (shape.batch, *shape.canvas, 3)
        count = math.prod(size)
        if self._pixels.numel() < count:
            self._pixels = self._pixels.new_zeros(count)
        return self._pixels[:count].view(size).permute(0, 3, 1, 2)


class _Graph(NamedTuple):
    images: Tensor
    extents: Tensor | None
    positions: Tensor | None  # held, because the graph reads them
    replay: Replay

    def fill(self, images: Tensor, extents: Tensor | None) -> None:
        """Copies a batch in. What an earlier one left in the padding is not looked at."""
        height, width = images.shape[-2:]
        self.images[..., :height, :width].copy_(images)
        if self.extents is None:
            return
        if extents is None:
            self.extents[:, 0].fill_(height)
            self.extents[:, 1].fill_(width)
        else:
            self.extents.copy_(extents)


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory.

    Their intermediate results overlap: of two graphs only the one replayed last has its outputs.

    Args:
        device: whose work is captured.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Outputs]) -> Replay:
        """See `Capture`."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # What other threads do, such as loading images, is not part of it. A capture that
            # fails leaves its stream the current one; the caller's is put back around it.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ),
            ):
                outputs = run()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

"""Detection on images: what a user calls."""

import inspect
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..data.transforms import resized_size
from ..models.segmentation import DETRSegmentation
from .batches import Batch, read_batches
from .decoding import decode
from .engine import MAX_GRAPHS, PRECISIONS, Engine
from .images import list_sources
from .inputs import Form, Inputs, input_path
from .loading import Loaded, Preprocess, label_map_of, load_for_detection
from .panoptic import PostProcessMasks, PostProcessPanoptic, is_confident, queries_where
from .results import AttentionMaps, Detections
from .verify import Parity, compare


class Detector:
    """Finds objects in images.

    Args:
        model: a name of the zoo ("detr_resnet50", ...), whose weights are downloaded once; the
            path or URL of a checkpoint; or a model, which is put in evaluation mode and takes what
            `DETR.forward` takes: lists of images, on CUDA also tensors and `NestedTensor`s.
        device: where to run; the GPU if there is one, otherwise the CPU.
        name: the zoo's name of the model, for a file of weights that does not say it.
        precision: "fp32", "bf16" or "fp16" to detect with an `Engine`, which is faster and differs
            from the model by rounding (`verify` tells by how much); None to run the model as it
            is, and follow it if it is trained on.
        exact_batches: give every image what it gets alone, whatever batch it comes in; without it
            a model keeps the rule it has, by default the original's. See `DETR`.
        max_graphs: of an engine on CUDA, graphs that are kept, see `Engine`; 0 to run without any.
        preprocess: to what size images are brought. By default what the checkpoint says, and if it
            does not, a short side of 800 and a long side of at most 1333 pixels (Carion et al.,
            ECCV 2020, section 4).

    Attributes:
        model: the model, on `device`.
        label_map: from its classes to the category ids and names of its data set.
        has_masks: whether the model has a mask head.

    Raises:
        FileNotFoundError: if there is neither such a name nor such a checkpoint.
        ValueError: if the checkpoint cannot be used; the message says why. If `exact_batches` is
            asked of a model that does not have it.

    Example:
        >>> detector = Detector("detr_resnet50")
        >>> detections = detector.predict("street.jpg")
        >>> detections.save("street_detected.jpg")
    """

    def __init__(
        self,
        model: str | os.PathLike | nn.Module = "detr_resnet50",
        device: torch.device | str | None = None,
        *,
        name: str | None = None,
        precision: str | None = None,
        exact_batches: bool = False,
        max_graphs: int = MAX_GRAPHS,
        preprocess: Preprocess | None = None,
    ):
        if isinstance(model, nn.Module):
            if exact_batches:
                if not hasattr(model, "exact_batches"):
                    raise ValueError(f"{type(model).__name__} has no exact_batches")
                model.exact_batches = True
            loaded = Loaded(model, label_map_of(model), Preprocess())
        else:
            loaded = load_for_detection(model, name, exact_batches=exact_batches)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = loaded.model.to(self.device).eval()
        self.label_map = loaded.label_map
        self.preprocess = preprocess or loaded.preprocess
        self._max_graphs = max_graphs
        self._engine = None if precision is None else self._new_engine(precision)
        self._inputs = input_path(self.preprocess, self.device)
        self.has_masks = isinstance(self.model, DETRSegmentation)
        self._masks = PostProcessMasks()

    @torch.inference_mode()
    def predict(
        self,
        source,
        threshold: float = 0.7,
        batch_size: int = 1,
        panoptic_threshold: float = 0.85,
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            source: an image: a path, a PIL image, an array (H, W, C) or a tensor (C, H, W), as
                uint8, uint16 or floating point in [0, 1], in RGB; or several: a list or tuple of
                images, a batch in four dimensions, or a folder, whose image files are taken in the
                order of their names. The rotation noted in EXIF is applied.
            threshold: the least score of an object that is returned, in [0, 1].
            batch_size: images that go through the model at once, at most. Without `exact_batches`
                these are neighbours of the list, on which the result depends a little, with DC5
                models much. With it they are images of like shapes, see `size_buckets`.
            panoptic_threshold: what the score of a segment has to exceed, in [0, 1], where the
                model has masks. Only queries that either threshold can keep get masks.

        Returns:
            `Detections` for an image; for several a list of them, in order, empty for none. Those
            of a model with masks have `masks` and `panoptic`.

        Raises:
            FileNotFoundError: if a path does not exist.
            ValueError: if an image cannot be used, named by its path or its place in the list; if
                `threshold` or `batch_size` is out of range.
        """
        _check_threshold(threshold)
        _check_threshold(panoptic_threshold)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.model.eval()
        sources, several = list_sources(source)
        results: dict[int, Detections] = {}
        form = self._form()
        if self._engine is not None and self.device.type == "cuda":
            # What it would make of anything else.
            form = Form(PRECISIONS[self._engine.precision], torch.channels_last)
        for batch in self._batches(sources, several, batch_size, form):
            found = self._predict_batch(batch, threshold, panoptic_threshold)
            results.update(zip(batch.places, found, strict=True))
        return [results[i] for i in range(len(sources))] if several else results[0]

    @torch.inference_mode()
    def attention(self, source, threshold: float = 0.7) -> AttentionMaps:
        """Detect objects in one image, and tell where the decoder looked for each of them.

        Args:
            source: one image, as `predict` takes it.
            threshold: as in `predict`.

        Returns:
            The same detections as from `predict`, and for each the weights from its query to the
            image in the last decoder layer, averaged over heads (Carion et al., ECCV 2020, figure
            6). `plot()` draws them.

        Raises:
            ValueError, FileNotFoundError: as `predict`; also if `source` is several images, or the
                model does not give its attention.
        """
        _check_threshold(threshold)
        sources, several = list_sources(source)
        if several:
            raise ValueError(f"attention is shown for one image at a time; got {len(sources)}")
        if "return_attention" not in inspect.signature(self.model.forward).parameters:
            raise ValueError(f"{type(self.model).__name__} does not give its attention")
        self.model.eval()
        (batch,) = self._batches(sources, several, 1, self._form())
        options = {"select": _no_queries} if self.has_masks else {}
        outputs = self.model(batch.inputs.samples, return_attention=True, **options)
        ((detections, queries),) = decode(outputs, batch, self.label_map, threshold)
        weights = outputs["attention"]["decoder"][-1, 0].mean(0).float().cpu()[queries]
        height, width = batch.inputs.canvas
        stride = _stride((height, width), tuple(weights.shape[1:]))
        covered = (height / stride, width / stride)
        return AttentionMaps(detections, weights.numpy(), covered)

    def verify(
        self, source, threshold: float = 0.7, batch_size: int = 1, precision: str | None = None
    ) -> Parity:
        """Compare an engine with the model in float32 on images.

        Args:
            source, threshold, batch_size: as in `predict`.
            precision: of the engine; by default the one that this detector has.

        Returns:
            The differences; its `faults(precision)` says in sentences what does not hold.

        Raises:
            ValueError, FileNotFoundError: as `predict`; also without an image and without a
                precision.
        """
        _check_threshold(threshold)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        if precision is not None:
            engine = self._new_engine(precision)
        elif self._engine is not None:
            engine = self._engine
        else:
            raise ValueError("this detector has no engine to verify; name a precision")
        self.model.eval()
        sources, several = list_sources(source)
        if not sources:
            raise ValueError("there is no image to compare on")
        batches = self._batches(sources, several, batch_size, self._form())
        samples = (batch.inputs.samples for batch in batches)
        return compare(self.model, engine, samples, threshold)

    def warm_up(self, sizes: Iterable[tuple[int, int]], batch_size: int = 1) -> None:
        """Prepare the engine for images of some sizes, so that `predict` need not.

        On CUDA this captures the graphs they need, each of which serves other sizes too. Elsewhere
        there is nothing to prepare.

        Args:
            sizes: (height, width) of images in pixels, as they come.
            batch_size: images in a batch; what does not fill one comes in smaller ones.

        Raises:
            ValueError: without a precision there is no engine; or the sizes need more graphs than
                `max_graphs`.
        """
        if self._engine is None:
            raise ValueError("this detector has no engine to warm up; give it a precision")
        short_side, max_size = self.preprocess.short_side, self.preprocess.max_size
        if short_side is not None:
            sizes = [resized_size(*size, short_side, max_size) for size in sizes]
        self._engine.capture(sizes, batch_size)

    def _new_engine(self, precision: str) -> Engine:
        return Engine(
            self.model,
            precision,
            max_graphs=self._max_graphs,
            short_side=self.preprocess.short_side,
        )

    def _form(self) -> Form:
        """Of the batches that the model takes."""
        return Form(next(self.model.parameters()).dtype)

    def _batches(
        self, sources: list, several: bool, batch_size: int, form: Form
    ) -> Iterator[Batch]:
        alike = batch_size > 1 and getattr(self._engine or self.model, "exact_batches", False)
        return read_batches(sources, several, batch_size, alike, self._inputs, form)

    def _predict_batch(
        self, batch: Batch, threshold: float, panoptic_threshold: float
    ) -> list[Detections]:
        if not self.has_masks:
            outputs = (self._engine or self.model)(batch.inputs.samples)
            return [found for found, _ in decode(outputs, batch, self.label_map, threshold)]
        select = partial(_kept_queries, threshold=threshold, panoptic_threshold=panoptic_threshold)
        outputs = self.model(batch.inputs.samples, select=select)
        found = decode(outputs, batch, self.label_map, threshold)
        return self._with_masks(outputs, batch.inputs, found, panoptic_threshold)

    def _with_masks(
        self,
        outputs,
        inputs: Inputs,
        found: list[tuple[Detections, Tensor]],
        panoptic_threshold: float,
    ) -> list[Detections]:
        canvas, sizes = inputs.canvas, inputs.sizes
        originals = [detections.image_size for detections, _ in found]
        maps = PostProcessPanoptic(self.label_map, panoptic_threshold)(
            outputs, canvas, sizes, originals
        )
        logits = [
            masks[_places(selected, queries)]
            for masks, selected, (_, queries) in zip(
                outputs["selected_masks"], outputs["selected_queries"], found, strict=True
            )
        ]
        masks = self._masks(logits, canvas, sizes, originals)
        return [
            replace(detections, masks=own.cpu().numpy(), panoptic=panoptic)
            for (detections, _), own, panoptic in zip(found, masks, maps, strict=True)
        ]


def _kept_queries(outputs, threshold: float, panoptic_threshold: float) -> list[Tensor]:
    """Queries that are shown as an object or as a segment, ascending, for each image."""
    objects = outputs["pred_logits"].softmax(-1)[..., :-1].amax(-1) >= threshold
    return queries_where(objects | is_confident(outputs, panoptic_threshold))


def _no_queries(outputs) -> list[Tensor]:
    return [logits.new_empty(0, dtype=torch.int64) for logits in outputs["pred_logits"]]


def _places(selected: Tensor, queries: Tensor) -> Tensor:
    """Where each of some queries stands among the selected ones, which are ascending."""
    return torch.searchsorted(selected, queries.to(selected.device, non_blocking=selected.is_cuda))


def _stride(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Pixels from one feature to the next; a backbone of stride s makes ceil(size / s) of them.

    A grid of one cell fits several strides, but there is nowhere else to look in it.
    """
    for stride in (32, 16, 8, 64, 4):
        if all(-(-n // stride) == cells for n, cells in zip(size, grid, strict=True)):
            return stride
    raise ValueError(f"a feature grid of {grid} does not fit an image of {size} pixels")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability in [0, 1]")

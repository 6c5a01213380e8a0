"""Detection on images: what a user calls."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.transforms import val_transform
from .images import list_sources, read_image, to_pil
from .loading import Loaded, Preprocess, label_map_of, load_for_detection
from .postprocess import PostProcess
from .results import Detections


class Detector:
    """Finds objects in images.

    Args:
        model: a name of the zoo ("detr_resnet50", ...), whose weights are downloaded once; the
            path or URL of a checkpoint; or a model, which is put in evaluation mode.
        device: where to run; the GPU if there is one, otherwise the CPU.
        name: the zoo's name of the model, for a file of weights that does not say it.
        preprocess: to what size images are brought. By default what the checkpoint says, and if it
            does not, a short side of 800 and a long side of at most 1333 pixels (Carion et al.,
            ECCV 2020, section 4).

    Attributes:
        model: the model, on `device`.
        label_map: from its classes to the category ids and names of its data set.

    Raises:
        FileNotFoundError: if there is neither such a name nor such a checkpoint.
        ValueError: if the checkpoint cannot be used; the message says why.

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
        preprocess: Preprocess | None = None,
    ):
        if isinstance(model, nn.Module):
            loaded = Loaded(model, label_map_of(model), Preprocess())
        else:
            loaded = load_for_detection(model, name)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = loaded.model.to(self.device).eval()
        self.label_map = loaded.label_map
        self.preprocess = preprocess or loaded.preprocess
        self._transform = val_transform(self.preprocess.short_side, self.preprocess.max_size)
        self._postprocess = PostProcess()

    @torch.inference_mode()
    def predict(
        self, source, threshold: float = 0.7, batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            source: an image: a path, a PIL image, an array (H, W, C) or a tensor (C, H, W), as
                uint8, uint16 or floating point in [0, 1], in RGB; or several: a list or tuple of
                images, a batch in four dimensions, or a folder, whose image files are taken in the
                order of their names. The rotation noted in EXIF is applied.
            threshold: the least score of an object that is returned, in [0, 1].
            batch_size: images that go through the model at once. With the original's padding masks
                the result depends a little on the other images of a batch, with DC5 models much.

        Returns:
            `Detections` for an image; for several a list of them, in order, empty for none.

        Raises:
            FileNotFoundError: if a path does not exist.
            ValueError: if an image cannot be used, named by its path or its place in the list; if
                `threshold` or `batch_size` is out of range.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; expected a probability in [0, 1]")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.model.eval()
        sources, several = list_sources(source)
        results: list[Detections] = []
        for start in range(0, len(sources), batch_size):
            chunk = sources[start : start + batch_size]
            results += self._predict_batch(chunk, start if several else None, threshold)
        return results if several else results[0]

    def _predict_batch(self, sources: list, start: int | None, threshold: float):
        images = [
            _read(source, None if start is None else start + i) for i, source in enumerate(sources)
        ]
        weight = next(self.model.parameters())
        batch = [self._transform(image).to(self.device, weight.dtype) for image in images]
        sizes = [tuple(image.shape[1:]) for image in images]
        decoded = self._postprocess(self.model(batch), torch.tensor(sizes))
        return [
            self._select(prediction, threshold, size, source, image)
            for prediction, size, source, image in zip(decoded, sizes, sources, images, strict=True)
        ]

    def _select(self, prediction, threshold: float, size, source, image) -> Detections:
        scores, labels, boxes = (prediction[k].cpu() for k in ("scores", "labels", "boxes"))
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        finite = scores.isfinite() & boxes.isfinite().all(1)
        if not finite.all():
            warnings.warn(
                f"{int((~finite).sum())} of the {len(finite)} predictions for {path or 'an image'} "
                "are not finite and were left out: look at the weights, or at the 16-bit range",
                stacklevel=4,
            )
        kept = torch.nonzero(finite & (scores >= threshold)).flatten()
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        indices = labels[kept].tolist()
        ids = [self.label_map.category_id(index) for index in indices]
        return Detections(
            boxes_xyxy=boxes[kept].float().numpy(),
            scores=scores[kept].float().numpy(),
            class_ids=np.array(ids, dtype=np.int64),
            class_names=tuple(self.label_map.name(index) for index in indices),
            image_size=size,
            path=path,
            open_image=_opener(path, image),
        )


def _read(source, position: int | None) -> Tensor:
    try:
        return read_image(source)
    except ValueError as error:
        if position is None or isinstance(source, str | os.PathLike):
            raise
        raise ValueError(f"image {position} of the list: {error}") from error


def _opener(path: Path | None, image: Tensor) -> Callable[[], Image.Image]:
    # Functions of modules, not closures, so that results can be sent to another process.
    return partial(to_pil, image) if path is None else partial(_open, path)


def _open(path: Path) -> Image.Image:
    return to_pil(read_image(path))

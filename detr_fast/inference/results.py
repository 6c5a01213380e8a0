"""What was detected in one image."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..data.instance_masks import encode_mask
from .panoptic import PanopticMap


class Detection(NamedTuple):
    """One object.

    Attributes:
        box_xyxy: left, top, right, bottom in pixels.
        score: probability in [0, 1].
        class_id: the data set's own category id.
        class_name: its name.
    """

    box_xyxy: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image, most certain first.

    `len`, iteration and an integer index give single objects (`Detection`); a slice, a boolean mask
    or an array of indices gives the `Detections` chosen. The names `xyxy`, `confidence`, `class_id`
    and `data` are those that `supervision.Detections(xyxy=, confidence=, class_id=, data=)` takes.

    Attributes:
        boxes_xyxy: (n, 4) float32, left, top, right, bottom in pixels of the upright image. A box
            may reach a little beyond the image.
        scores: (n,) float32 probabilities.
        class_ids: (n,) int64, the data set's own category ids.
        class_names: n names.
        image_size: height and width in pixels of the upright image.
        path: the file of the image, None if it came from memory.
        open_image: gives the upright RGB image, to draw on. A file is read again, so that results
            of many images do not hold their pixels.
        masks: (n, H, W) bool in pixels of the upright image; None of a model without masks.
        panoptic: the whole image in segments, whatever objects are chosen; None of a model without
            masks.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    path: Path | None = None
    open_image: Callable[[], Image.Image] | None = field(default=None)
    masks: np.ndarray | None = None
    panoptic: PanopticMap | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        if isinstance(index, int | np.integer):
            return Detection(
                tuple(self.boxes_xyxy[index].tolist()),
                float(self.scores[index]),
                int(self.class_ids[index]),
                self.class_names[index],
            )
        chosen = np.arange(len(self))[index]
        return Detections(
            self.boxes_xyxy[chosen],
            self.scores[chosen],
            self.class_ids[chosen],
            tuple(self.class_names[i] for i in chosen),
            self.image_size,
            self.path,
            self.open_image,
            None if self.masks is None else self.masks[chosen],
            self.panoptic,
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        where = f"{self.path.name}, " if self.path else ""
        objects = "1 object" if len(self) == 1 else f"{len(self)} objects"
        lines = [f"Detections({where}{width}x{height} px, {objects})"]
        lines += [
            f"  {d.class_name} {d.score:.2f} at ({', '.join(f'{x:.0f}' for x in d.box_xyxy)})"
            for d in self[:20]
        ]
        if len(self) > 20:
            lines.append(f"  and {len(self) - 20} more")
        return "\n".join(lines)

    @property
    def xyxy(self) -> np.ndarray:
        """`boxes_xyxy` under the name that supervision uses."""
        return self.boxes_xyxy

    @property
    def confidence(self) -> np.ndarray:
        """`scores` under the name that supervision uses."""
        return self.scores

    @property
    def class_id(self) -> np.ndarray:
        """`class_ids` under the name that supervision uses."""
        return self.class_ids

    @property
    def data(self) -> dict[str, np.ndarray]:
        """The class names as supervision's annotators look for them."""
        return {"class_name": np.array(self.class_names, dtype=str)}

    @property
    def captions(self) -> list[str]:
        """Name and score of each object, as they are drawn."""
        return [f"{name} {s:.2f}" for name, s in zip(self.class_names, self.scores, strict=True)]

    def image(self) -> Image.Image:
        """The upright RGB image that was looked at.

        Raises:
            FileNotFoundError, ValueError: if the image's file is gone or no longer an image.
            ValueError: if these detections were made without an image.
        """
        if self.open_image is None:
            raise ValueError("these detections have no image: open_image is None")
        return self.open_image()

    def plot(self, enlarge: bool = True) -> Image.Image:
        """Draw the detections on the image, with their masks where there are some.

        Args:
            enlarge: whether a small image is enlarged, by a whole factor, until its captions can be
                read; otherwise the picture has the size of the image.

        Returns:
            A new RGB picture.

        Raises:
            FileNotFoundError, ValueError: see `image`.
        """
        from ..visualization.draw import draw_boxes
        from ..visualization.segments import draw_masks

        if self.open_image is None:
            raise ValueError("these detections have no image to draw on: open_image is None")
        captions = [
            f"{name} {s:.2f}" for name, s in zip(self.class_names, self.scores, strict=True)
        ]
        image = self.open_image()
        class_ids = self.class_ids.tolist()
        if self.masks is not None:
            image = draw_masks(image, self.masks, class_ids)
        return draw_boxes(image, self.boxes_xyxy, class_ids, captions, enlarge=enlarge)

    def plot_panoptic(self, enlarge: bool = True) -> Image.Image:
        """Draw the segments of the panoptic map on the image, with the names of their classes.

        Args:
            enlarge: as in `plot`.

        Returns:
            A new RGB picture.

        Raises:
            FileNotFoundError, ValueError: see `image`.
            ValueError: if the model has no masks.
        """
        from ..visualization.segments import draw_segments

        if self.panoptic is None:
            raise ValueError(
                "these detections have no panoptic map; use a model with masks, such as "
                "detr_resnet50_panoptic"
            )
        info = self.panoptic.segments_info
        return draw_segments(
            self.image(),
            self.panoptic.ids,
            [segment["id"] for segment in info],
            [segment["category_id"] for segment in info],
            self.panoptic.names,
            enlarge=enlarge,
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Draw the detections and write the picture.

        Args:
            path: a file whose suffix names the format, or an existing folder, in which the picture
                gets the name of the image's file. Missing folders are made.

        Returns:
            Where the picture was written.

        Raises:
            ValueError: as `plot`; also if the suffix names no format that Pillow writes, or `path`
                is a folder and the image has no name, or is the image's own file.
        """
        path = Path(path)
        if path.is_dir():
            if self.path is None:
                raise ValueError(
                    f"{path} is a folder, and the image came from memory: give a file name"
                )
            path = path / self.path.name
        if self.path is not None and path.exists() and path.samefile(self.path):
            raise ValueError(f"{path} is the image itself; save the drawn picture elsewhere")
        if path.suffix.lower() not in Image.registered_extensions():
            raise ValueError(
                f"{path} does not end in an image format; use .png or .jpg, for example"
            )
        picture = self.plot()
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=92)  # letters suffer from the usual quality of JPEG
        return path

    def to_coco(self, image_id: int) -> list[dict]:
        """The detections as entries of a COCO results file.

        Args:
            image_id: id of the image in the annotations to compare with.

        Returns:
            For each detection `image_id`, `category_id`, `bbox` (left, top, width, height in
            pixels) and `score`, of plain Python numbers; with masks also `segmentation`, run
            lengths.
        """
        masks = [None] * len(self) if self.masks is None else self.masks
        return [
            {
                "image_id": int(image_id),
                "category_id": detection.class_id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": detection.score,
                **({} if mask is None else {"segmentation": encode_mask(mask)}),
            }
            for detection, mask in zip(self, masks, strict=True)
            for x0, y0, x1, y1 in [detection.box_xyxy]
        ]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where the decoder looked for each object.

    Attributes:
        detections: n objects.
        weights: (n, Hf, Wf) float32 on the grid of features, in the order of `detections`; each map
            sums to 1.
        covered: how many rows and columns of the grid the image takes up, from the top left; the
            last ones may be covered in part.
    """

    detections: Detections
    weights: np.ndarray
    covered: tuple[float, float]

    def plot(self, width: int = 480) -> Image.Image:
        """Draw each object and its map over the image, side by side.

        Args:
            width: of the picture of one object, in pixels.

        Returns:
            One RGB picture.

        Raises:
            FileNotFoundError, ValueError: as `Detections.plot`; also if there is no object.
        """
        from ..visualization.attention import draw_attention

        found = self.detections
        return draw_attention(
            found.image(),
            found.boxes_xyxy,
            found.class_ids.tolist(),
            found.captions,
            self.weights,
            self.covered,
            width,
        )

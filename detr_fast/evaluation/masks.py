"""Evaluation of masks beside boxes: mask AP of instances and, where there is stuff, PQ."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.utils.data import Dataset

from ..inference.panoptic import PostProcessMasks, PostProcessPanoptic
from .coco import CocoEvaluator
from .panoptic import PanopticEvaluator


class MaskEvaluator:
    """Turns the masks of a model into instance masks and panoptic maps, and compares them.

    Args:
        dataset: what is evaluated on; has `label_map`, `ground_truth(masks=True)` and, where its
            label map has stuff, `panoptic_ground_truth()` and `read_ids(image_id)`.
        panoptic: how panoptic maps are made; None takes the defaults.

    Raises:
        ValueError: an object of the ground truth has no mask.
    """

    def __init__(self, dataset: Dataset, panoptic: PostProcessPanoptic | None = None):
        label_map = dataset.label_map
        self._segm = CocoEvaluator(dataset.ground_truth(masks=True), label_map, "segm")
        self._masks = PostProcessMasks()
        self._panoptic = None
        if label_map.stuff:
            self._panoptic = PanopticEvaluator(dataset.panoptic_ground_truth(), dataset.read_ids)
            self._maps = panoptic or PostProcessPanoptic(label_map)

    def update(
        self,
        outputs: Mapping[str, Tensor],
        detections: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Tensor]],
        canvas: tuple[int, int],
    ) -> None:
        """Add a batch.

        Args:
            outputs: of the model, with `pred_masks`.
            detections: of each image, one for each query, as `PostProcess` gives them.
            targets: of each image, with `image_id`, `size` and `orig_size`.
            canvas: height and width of the padded batch.
        """
        ids = [int(target["image_id"]) for target in targets]
        sizes = [tuple(target["size"].tolist()) for target in targets]
        originals = [tuple(target["orig_size"].tolist()) for target in targets]
        for i, image_id in enumerate(ids):
            # One image at a time: a hundred masks of several large images would not fit.
            logits = outputs["pred_masks"][i : i + 1]
            (masks,) = self._masks(logits, canvas, sizes[i : i + 1], originals[i : i + 1])
            self._segm.update({image_id: {**detections[i], "masks": masks}})
        if self._panoptic is not None:
            maps = self._maps(outputs, canvas, sizes, originals)
            self._panoptic.update(
                {i: (m.ids, m.segments_info) for i, m in zip(ids, maps, strict=True)}
            )

    def synchronize(self) -> None:
        """Give every process the images of all processes."""
        self._segm.synchronize()
        if self._panoptic is not None:
            self._panoptic.synchronize()

    def summarize(self) -> dict:
        """`segm`, as `CocoEvaluator.summarize` returns it, and with stuff `panoptic`."""
        figures = {"segm": self._segm.summarize()}
        if self._panoptic is not None:
            figures["panoptic"] = self._panoptic.summarize()
        return figures

"""COCO average precision and recall of boxes or masks, by pycocotools."""

import contextlib
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ..data.instance_masks import encode_mask, mask_area

if TYPE_CHECKING:
    from ..data.label_map import LabelMap

# What is compared, and what the original's logs call its figures.
KINDS = {"bbox": "coco_eval_bbox", "segm": "coco_eval_masks"}
# The order of COCOeval.stats.
STAT_NAMES = (
    "AP", "AP50", "AP75", "APs", "APm", "APl",
    "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip


class CocoEvaluator:
    """Collects detections image by image and computes the twelve COCO figures.

    Every process of a distributed evaluation feeds its own images; `synchronize` then gives all of
    them the union, and each computes the same figures. Only images that were given to `update`
    count: an image with no detections must still be given, with empty tensors.

    Args:
        ground_truth: a COCO-format dictionary with `images`, `annotations`, `categories`. It is
            not modified. `info`, and `area`, `iscrowd`, `id` of annotations may be absent.
        label_map: from the label indices of the model to the category ids of `ground_truth`.
            Detections of categories that the ground truth does not have, stuff for example, do not
            count.
        kind: "bbox" compares boxes, "segm" masks, for which annotations need a `segmentation`.

    Raises:
        ValueError: if an annotation has a category that the ground truth does not define, or for
            "segm" no segmentation.
    """

    def __init__(self, ground_truth: Mapping, label_map: "LabelMap", kind: str = "bbox"):
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
        self.kind = kind
        self.label_map = label_map
        self._category_ids = np.array(label_map.ids, dtype=np.int64)
        categories = list(ground_truth["categories"])
        category_ids = {category["id"] for category in categories}
        for annotation in ground_truth["annotations"]:
            if annotation["category_id"] not in category_ids:
                raise ValueError(
                    f"annotation {annotation.get('id', '(without id)')} of image "
                    f"{annotation['image_id']} has category_id {annotation['category_id']}, which "
                    "is not among the categories of the ground truth; add it there or remove the "
                    "annotation"
                )
            if kind == "segm" and not annotation.get("segmentation"):
                raise ValueError(
                    f"annotation {annotation.get('id', '(without id)')} of image "
                    f"{annotation['image_id']} has no segmentation, without which masks cannot be "
                    "compared"
                )
        self._ground_truth = _index(
            list(ground_truth["images"]),
            [_complete(a, i) for i, a in enumerate(ground_truth["annotations"], start=1)],
            categories,
        )
        self._detections: dict[int, dict] = {}
        self._nonfinite: dict[int, int] = {}

    def update(self, predictions: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Add the detections of some images.

        Args:
            predictions: image id to `scores` (n,), `labels` (n,) label-map indices and `boxes`
                (n, 4) xyxy in pixels of the original image, on any device. Detections with a
                non-finite score or box are left out and counted. For "segm" also `masks` (n, H, W)
                bool at the size of the original image. An image id given again replaces what was
                there.

        Raises:
            ValueError: if an image id is not in the ground truth, a label not in the label map, or
                the three tensors differ in length.
        """
        for image_id, prediction in predictions.items():
            image_id = int(image_id)
            if image_id not in self._ground_truth.imgs:
                raise ValueError(
                    f"predictions are for image {image_id}, which is not among the "
                    f"{len(self._ground_truth.imgs)} images of the ground truth; evaluate on the "
                    "data set that the annotations belong to"
                )
            scores = prediction["scores"].detach().cpu().double().numpy()
            labels = prediction["labels"].detach().cpu().long().numpy()
            boxes = prediction["boxes"].detach().cpu().double().numpy().reshape(-1, 4)
            if not len(scores) == len(labels) == len(boxes):
                raise ValueError(
                    f"predictions of image {image_id} have {len(scores)} scores, {len(labels)} "
                    f"labels and {len(boxes)} boxes; expected equal lengths"
                )
            outside = (labels < 0) | (labels >= len(self.label_map))
            if outside.any():
                raise ValueError(
                    f"predictions of image {image_id} contain label {labels[outside][0]}; the "
                    f"label map has indices 0 to {len(self.label_map) - 1}"
                )
            finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
            self._nonfinite[image_id] = int((~finite).sum())
            self._detections[image_id] = {
                "scores": scores[finite],
                "categories": self._category_ids[labels[finite]],
                "boxes": boxes[finite],
            }
            if self.kind == "segm":
                masks = prediction["masks"].detach().cpu().numpy()
                if len(masks) != len(scores):
                    raise ValueError(
                        f"predictions of image {image_id} have {len(scores)} scores and "
                        f"{len(masks)} masks; expected equal lengths"
                    )
                # Run lengths: a hundred masks of an image would be tens of megabytes.
                self._detections[image_id]["masks"] = [encode_mask(m) for m in masks[finite]]

    def synchronize(self) -> None:
        """Give every process the detections of all processes.

        Images that several processes hold, as samplers that pad the last batch produce, are
        counted once, with the detections of the lowest rank. Does nothing outside of
        torch.distributed.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        gathered: list = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (self._detections, self._nonfinite))
        # Lower ranks are applied last so that theirs are the ones kept.
        for detections, nonfinite in reversed(gathered):
            self._detections = {**self._detections, **detections}
            self._nonfinite = {**self._nonfinite, **nonfinite}

    def summarize(self) -> dict:
        """Compute the figures over the images seen.

        Returns:
            A dictionary with

            * `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`,
              `ARl`: floats in [0, 1], NaN where there is nothing to measure (no small objects,
              say);
            * `per_class`: a list of `category_id`, `name`, `instances` (annotations in the images
              seen, crowds aside), `AP`, `AP50`, `AR100`, in the order of category ids; NaN for a
              category without instances;
            * `coco_eval_bbox`, for "segm" `coco_eval_masks`: the twelve figures as a list, -1
              instead of NaN, as log files of DETR hold them;
            * `images`: how many images were evaluated;
            * `nonfinite_detections`: how many were left out for a NaN or infinite value.

        Raises:
            ValueError: if no image was given to `update`.
        """
        from pycocotools.cocoeval import COCOeval

        if not self._detections:
            raise ValueError("no image was evaluated: update() was never called with an image")
        image_ids = sorted(self._detections)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._ground_truth, self._detections_as_coco(), iouType=self.kind)
            evaluation.params.imgIds = image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = [float(value) for value in evaluation.stats]
        summary: dict = {
            name: value if value >= 0 else math.nan
            for name, value in zip(STAT_NAMES, stats, strict=True)
        }
        summary["per_class"] = self._per_class(evaluation, image_ids)
        summary[KINDS[self.kind]] = stats
        summary["images"] = len(image_ids)
        summary["nonfinite_detections"] = sum(self._nonfinite.values())
        return summary

    def _detections_as_coco(self):
        annotations = []
        for image_id, detections in self._detections.items():
            x0, y0, x1, y1 = detections["boxes"].T
            columns = zip(
                np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist(),
                ((x1 - x0) * (y1 - y0)).tolist(),
                detections["scores"].tolist(),
                detections["categories"].tolist(),
                detections.get("masks", [None] * len(x0)),
                strict=True,
            )
            for box, area, score, category, mask in columns:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": box,
                        "area": area,
                        "score": score,
                        "iscrowd": 0,
                        **({} if mask is None else {"segmentation": mask, "area": mask_area(mask)}),
                    }
                )
        truth = self._ground_truth.dataset
        return _index(truth["images"], annotations, truth["categories"])

    def _per_class(self, evaluation, image_ids: list[int]) -> list[dict]:
        seen = set(image_ids)
        instances = dict.fromkeys(evaluation.params.catIds, 0)
        for annotation in self._ground_truth.dataset["annotations"]:
            if annotation["image_id"] in seen and not annotation["iscrowd"]:
                instances[annotation["category_id"]] += 1
        # precision: IoU threshold x recall x category x area range x detections an image;
        # recall: the same without the recall axis. Area range 0 is "all", the last limit is 100.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        recall = evaluation.eval["recall"][:, :, 0, -1]
        categories = self._ground_truth.dataset["categories"]
        names = {category["id"]: category.get("name", category["id"]) for category in categories}
        return [
            {
                "category_id": int(category_id),
                "name": str(names[category_id]),
                "instances": instances[category_id],
                "AP": _mean(precision[:, :, k]),
                "AP50": _mean(precision[0, :, k]),
                "AR100": _mean(recall[:, k]),
            }
            for k, category_id in enumerate(evaluation.params.catIds)
        ]


def _complete(annotation: Mapping, annotation_id: int) -> dict:
    """The fields that COCOeval reads of a box annotation, under a new id.

    COCOeval marks a detection as unmatched by id 0, so an annotation whose own id is 0 could never
    be found; numbering anew, from 1, also makes missing and repeated ids harmless.
    """
    _, _, width, height = annotation["bbox"]
    segmentation = annotation.get("segmentation")
    return {
        "id": annotation_id,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": annotation["bbox"],
        "area": annotation.get("area", width * height),
        "iscrowd": annotation.get("iscrowd", 0),
        **({"segmentation": segmentation} if segmentation else {}),
    }


def _index(images: list, annotations: list, categories: list):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that COCOeval could compute; it marks the others by -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan

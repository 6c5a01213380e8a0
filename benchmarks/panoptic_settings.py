"""What a wrong setting does to PQ: users of the original saw 24.7 instead of 43.4.

    python benchmarks/panoptic_settings.py

A model that is right about everything predicts generated scenes, brought to the sizes of COCO
images, through masks of stride 4; then one setting at a time is wrong. Since nothing else is, a
setting that costs half of PQ here can do so with a real model, and one that leaves PQ where it was
cannot.
"""

import numpy as np
import torch
import torch.nn.functional as F

from detr_fast.data.panoptic_png import ids_to_rgb, rgb_to_ids
from detr_fast.data.shapes import ShapesDataset
from detr_fast.data.transforms import MAX_SIZE, resized_size
from detr_fast.evaluation.panoptic import PanopticEvaluator
from detr_fast.inference.benchmark.workloads import val2017_sizes
from detr_fast.inference.panoptic import PostProcessPanoptic

# Pixels of the model's input for each of these: the experiment is about proportions.
REDUCTION = 8
STRIDE = 4


def nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tensor = torch.from_numpy(ids.astype(np.float64))[None, None]
    return F.interpolate(tensor, size=size, mode="nearest-exact")[0, 0].numpy().astype(np.int64)


def evaluate(
    batch_size: int = 1,
    *,
    cut_padding: bool = True,
    short_side: int = 800,
    threshold: float = 0.85,
    merge_stuff: bool = True,
    channels: str = "rgb",
    category_shift: int = 0,
) -> dict:
    """PQ, SQ and RQ of the model that is right, with these settings."""
    # Maps of a quarter of the pixels have the same proportions.
    sizes = [(height // 2, width // 2) for height, width in val2017_sizes()]
    scenes = ShapesDataset(len(sizes), seed=7, stuff=True)
    label_map = scenes.label_map
    truth = scenes.panoptic_ground_truth()
    ids = {i: nearest(scenes.read_ids(i), size) for i, size in enumerate(sizes)}
    evaluator = PanopticEvaluator(truth, ids.__getitem__)
    process = PostProcessPanoptic(label_map, threshold, merge_stuff=merge_stuff)
    inputs = [
        tuple(side // REDUCTION for side in resized_size(*size, short_side, MAX_SIZE))
        for size in val2017_sizes()
    ]
    for start in range(0, len(sizes), batch_size):
        members = range(start, min(start + batch_size, len(sizes)))
        canvas = tuple(max(side) for side in zip(*(inputs[i] for i in members), strict=True))
        for i in members:
            segments = truth["annotations"][i]["segments_info"]
            outputs = perfect(ids[i], segments, label_map, inputs[i], canvas)
            # The original enlarges masks of the padded batch to the size of the image alone.
            used = canvas if cut_padding else inputs[i]
            (found,) = process(outputs, used, [inputs[i]], [sizes[i]])
            info = [
                {**s, "category_id": (s["category_id"] + category_shift - 1) % len(label_map) + 1}
                for s in found.segments_info
            ]
            stored = ids_to_rgb(found.ids * 1000)
            read = rgb_to_ids(stored if channels == "rgb" else stored[..., ::-1])
            info = [{**s, "id": s["id"] * 1000} for s in info]
            try:
                evaluator.update({i: (read, info)})
            except ValueError as error:
                return {"error": str(error)}
    return evaluator.summarize()


def perfect(ids, segments, label_map, size, canvas) -> dict[str, torch.Tensor]:
    """Outputs for one image, right in class and mask, on the grid of the padded batch."""
    masks = np.stack([nearest(ids == s["id"], size) for s in segments])
    padded = F.pad(
        torch.from_numpy(masks).float(), (0, canvas[1] - size[1], 0, canvas[0] - size[0])
    )
    grid = tuple(-(-side // STRIDE) for side in canvas)
    cells = F.interpolate(padded[:, None], size=grid, mode="area")[:, 0]
    labels = torch.tensor([[label_map.index(s["category_id"]) for s in segments]])
    return {
        "pred_logits": F.one_hot(labels, len(label_map) + 1) * 12.0,
        "pred_masks": 12 * (cells[None] - 0.5),
    }


def main() -> None:
    settings = {
        "as published: batch size 1": {},
        "batch size 2, padding cut off (as here)": {"batch_size": 2},
        "batch size 2, padding stretched over the image (the original)": {
            "batch_size": 2,
            "cut_padding": False,
        },
        "batch size 8, padding stretched over the image": {"batch_size": 8, "cut_padding": False},
        "short side 400 instead of 800": {"short_side": 400},
        "score threshold 0.5 instead of 0.85": {"threshold": 0.5},
        "stuff as the original's code has it": {"merge_stuff": False},
        "ids read as B + 256 G + 256^2 R": {"channels": "bgr"},
        "category ids off by one": {"category_shift": 1},
    }
    print(f"{'setting':<64} PQ     SQ     RQ")
    for name, options in settings.items():
        figures = evaluate(**options)
        if "error" in figures:
            print(f"{name:<64} refused: {figures['error'][:90]}")
        else:
            print(f"{name:<64} {figures['PQ']:.3f}  {figures['SQ']:.3f}  {figures['RQ']:.3f}")


if __name__ == "__main__":
    main()

"""Each CUDA kernel on small problems, compared with the CPU; `gpu.py` runs it in compute-sanitizer.

Inputs come to the GPU as copies, so that the sanitizers see no kernels but those of detr_fast.
"""

import torch

from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.matching_cost import matching_cost
from detr_fast.ops.set_matching import set_matching


def same(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    if not torch.equal(found.cpu(), expected):
        raise SystemExit(f"gpu_small: {what} differs from the CPU")


def assignments():
    # One shape for each kernel, and one whose state or costs stay in global memory.
    shapes = [(9, 100), (40, 300), (300, 40), (30, 600), (20, 1000), (12, 1100), (260, 300)]
    for dtype in (torch.float32, torch.float64):
        for rows, columns in shapes:
            cost = torch.randint(0, 50, (2, rows, columns)).to(dtype)
            same(linear_assignment(cost.cuda()), linear_assignment(cost), f"{rows} x {columns}")
    cost, sizes = torch.rand(3, 40, 60), torch.tensor([[40, 60], [30, 7], [0, 9]])
    same(linear_assignment(cost.cuda(), sizes), linear_assignment(cost, sizes), "mixed sizes")
    wide = torch.randint(0, 9, (2, 9, 8000)).float()
    same(linear_assignment(wide.cuda()), linear_assignment(wide), "a wide problem")


def matchings():
    rooms, counts = (5, 0, 50, 3), torch.tensor([4, 0, 45, 3])
    offsets = torch.tensor([0, *rooms]).cumsum(0)
    logits, boxes = torch.randn(2, 4, 36, 20), torch.rand(2, 4, 36, 4)
    boxes[torch.rand(boxes.shape) < 0.02] = torch.nan
    targets = (torch.randint(20, (sum(rooms),)), torch.rand(sum(rooms), 4))
    for class_cost in ("softmax", "focal"):
        given = (logits, boxes, *targets, offsets)
        on_gpu = (*(each.cuda() for each in given[:4]), offsets)
        options = {"class_cost": class_cost, "counts": counts}
        cost = matching_cost(*on_gpu, **options).cpu()
        same(cost.nan_to_num(), matching_cost(*given, **options).nan_to_num(), class_cost)
        for stand_in in (1e8, float("inf"), float("nan")):
            form = options | {"groups": 3, "non_finite_cost": stand_in}
            expected = set_matching(*given, **form)
            same(set_matching(*on_gpu, **form), expected, f"{class_cost}, {stand_in}")
            form["counts"] = counts.cuda()
            same(set_matching(*on_gpu, **form), expected, f"{class_cost}, {stand_in}, on device")


if __name__ == "__main__":
    torch.manual_seed(0)
    assignments()
    matchings()
    torch.cuda.synchronize()
    print("gpu_small: all as on the CPU")

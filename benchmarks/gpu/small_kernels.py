"""Each kernel on small problems against the CPU; what `sanitize` runs in compute-sanitizer.

Inputs come to the device as copies, so that the sanitizers see few kernels but those of detr_fast.
"""

import torch

from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.matching_cost import matching_cost
from detr_fast.ops.set_matching import set_matching
from detr_fast.ops.zero_outside import zero_outside, zero_outside_

# Of attention, relative to the largest entry, against float64: as tests/tolerances.py has them, the
# second doubled for gradients that grow with the keys.
FLOAT32, FLOAT16 = 1e-5, 4e-3


def main(kernels: str, device: str) -> None:
    """Runs the kernels of CUDA or of Triton; raises SystemExit where one is wrong."""
    torch.manual_seed(0)
    if kernels == "cuda":
        assignments(device)
        matchings(device)
        clearings(device)
    else:
        attentions(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"small {kernels} kernels: all as they should be")


def same(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    if not torch.equal(found.cpu(), expected):
        raise SystemExit(f"small kernels: {what} differs from the CPU")


def assignments(device: str) -> None:
    # One shape for each kernel, and one whose state or costs stay in global memory.
    shapes = [(9, 100), (40, 300), (300, 40), (30, 600), (20, 1000), (12, 1100), (260, 300)]
    for dtype in (torch.float32, torch.float64):
        for rows, columns in shapes:
            cost = torch.randint(0, 50, (2, rows, columns)).to(dtype)
            same(linear_assignment(cost.to(device)), linear_assignment(cost), f"{rows} x {columns}")
    cost, sizes = torch.rand(3, 40, 60), torch.tensor([[40, 60], [30, 7], [0, 9]])
    same(linear_assignment(cost.to(device), sizes), linear_assignment(cost, sizes), "mixed sizes")
    wide = torch.randint(0, 9, (2, 9, 8000)).float()
    same(linear_assignment(wide.to(device)), linear_assignment(wide), "a wide problem")


def matchings(device: str) -> None:
    rooms, counts = (5, 0, 50, 3), torch.tensor([4, 0, 45, 3])
    offsets = torch.tensor([0, *rooms]).cumsum(0)
    logits, boxes = torch.randn(2, 4, 36, 20), torch.rand(2, 4, 36, 4)
    boxes[torch.rand(boxes.shape) < 0.02] = torch.nan
    targets = (torch.randint(20, (sum(rooms),)), torch.rand(sum(rooms), 4))
    for class_cost in ("softmax", "focal"):
        given = (logits, boxes, *targets, offsets)
        on_device = (*(each.to(device) for each in given[:4]), offsets)
        options = {"class_cost": class_cost, "counts": counts}
        cost = matching_cost(*on_device, **options).cpu()
        same(cost.nan_to_num(), matching_cost(*given, **options).nan_to_num(), class_cost)
        for stand_in in (1e8, float("inf"), float("nan")):
            form = options | {"groups": 3, "non_finite_cost": stand_in}
            expected = set_matching(*given, **form)
            same(set_matching(*on_device, **form), expected, f"{class_cost}, {stand_in}")
            form["counts"] = counts.to(device)
            same(set_matching(*on_device, **form), expected, f"{class_cost}, {stand_in}, on device")


def clearings(device: str) -> None:
    extents = torch.tensor([[9, 13], [4, 13], [9, 5], [0, 3], [1, 1]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = torch.randn(5, 7, 9, 13).to(dtype).to(memory_format=layout)
            # As part of a larger tensor it begins where 16 bytes do not.
            on_device = maps.new_empty(maps.numel() + 1, device=device)[1:].as_strided(
                maps.shape, maps.stride()
            )
            on_device.copy_(maps)
            expected = zero_outside(maps, extents)
            same(zero_outside(on_device, extents.to(device)), expected, f"{dtype}, {layout}")
            zero_outside_(on_device, extents.to(device))
            same(on_device, expected, f"{dtype}, {layout}, in place")


def attentions(device: str) -> None:
    """Every kernel of attention, whole keys and shares of them, with dropout and without."""
    from detr_fast.kernels import attention as kernels
    from detr_fast.reference import attention as reference

    # The second has few queries and so many keys that they are split. Float32 on a GPU is three
    # products of TensorFloat-32.
    grids = [(150, (9, 15)), (20, (24, 25) if device == "cuda" else (18, 29))]
    for queries, grid in grids:
        for dtype, tolerance in ((torch.float32, FLOAT32), (torch.float16, FLOAT16)):
            for dropout in (0.0, 0.3):
                lengths = (queries, grid[0] * grid[1], grid[0] * grid[1], queries)
                tensors = [torch.randn(2, 1, length, 32).to(dtype) for length in lengths]
                extents = torch.tensor([grid, (grid[0] // 2, grid[1] - 3)])
                seed = torch.tensor([2**61 + 7]) if dropout else None
                form = (grid[1], dropout)
                exact = [x.double() for x in tensors]
                out, sums = reference.attention(*exact[:3], extents, *form, seed)
                expected = (
                    out,
                    *reference.attention_backward(
                        exact[3], *exact[:3], extents, *form, seed, out, sums
                    ),
                )
                query, key, value, grad = (x.to(device) for x in tensors)
                given = (query, key, value, extents.to(device), *form)
                given = (*given, None if seed is None else seed.to(device))
                out, sums = kernels.attention(*given)
                found = (out, *kernels.attention_backward(grad, *given, out, sums))
                for actual, wanted in zip(found, expected, strict=True):
                    error = (actual.cpu().double() - wanted).abs().max().item()
                    if not error <= tolerance * max(1, wanted.abs().max().item()):
                        raise SystemExit(
                            f"small kernels: attention of {queries} queries on {grid} in {dtype}, "
                            f"dropout {dropout}, is off by {error:.1e}"
                        )

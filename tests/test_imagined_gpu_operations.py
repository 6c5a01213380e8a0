"""Operations and matchers on a GPU that is imagined: where their results are, and who waits."""

import pytest
import torch
from imagined_gpu import GPU, imagined_gpu

from detr_fast.integrations.matchers import (
    DeformableDetrMatcher,
    GroupDetrMatcher,
    RTDetrMatcher,
    TransformersMatcher,
)
from detr_fast.ops.assignment import linear_assignment
from detr_fast.ops.attention import attention
from detr_fast.ops.certificate import certified_assignment
from detr_fast.ops.matching_cost import matching_cost
from detr_fast.ops.set_matching import set_matching
from detr_fast.ops.sorted_matches import sorted_matches
from detr_fast.ops.zero_outside import zero_outside, zero_outside_
from detr_fast.training.matcher import HungarianMatcher
from detr_fast.training.targets import pack_targets

COUNTS = (3, 0, 7)
QUERIES = 12


def targets() -> list[dict]:
    return [
        {"labels": torch.randint(5, (count,)), "boxes": torch.rand(count, 4) * 0.5 + 0.2}
        for count in COUNTS
    ]


def predictions(dtype=torch.float32) -> dict:
    return {
        "pred_logits": torch.randn(3, QUERIES, 6, device="cuda", dtype=dtype),
        "pred_boxes": torch.rand(3, QUERIES, 4, device="cuda", dtype=dtype),
    }


def on_gpu(given: list[dict]) -> list[dict]:
    return [{name: value.to("cuda") for name, value in target.items()} for target in given]


def matching_arguments() -> tuple:
    packed = pack_targets(targets()).to("cuda")
    layers = (value[None].expand(2, -1, -1, -1) for value in predictions().values())
    return (*layers, packed.labels, packed.boxes, packed.offsets)


# --- operations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes_on", ["cpu", "cuda", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_assignment_does_not_wait(dtype, sizes_on):
    with imagined_gpu() as gpu:
        cost = torch.rand(4, 20, 30, device="cuda").to(dtype)
        sizes = None if sizes_on is None else torch.ones(4, 2, dtype=torch.int64).to(sizes_on)
        with gpu.no_waiting():
            found = linear_assignment(cost.mT, sizes)
        assert (found.shape, found.dtype, found.device) == ((4, 30), torch.int64, GPU)


@pytest.mark.parametrize("counts_on", ["cpu", "cuda", None])
@pytest.mark.parametrize("extra", [False, True])
def test_matching_does_not_wait(extra, counts_on):
    with imagined_gpu() as gpu:
        given = matching_arguments()
        options = {"extra_cost": torch.rand(2, 10, QUERIES, device="cuda") if extra else None}
        if counts_on is not None:
            options["counts"] = torch.ones(3, dtype=torch.int64).to(counts_on)
        with gpu.no_waiting():
            cost = matching_cost(*given, **options)
            matched = set_matching(*given, groups=3, **options)
            queries, places = sorted_matches(matched[:3], given[-1])
        assert (cost.shape, matched.shape, queries.shape) == ((2, 10, QUERIES), (6, 10), (30,))
        assert {x.device for x in (cost, matched, queries, places)} == {GPU}


@pytest.mark.parametrize("place", range(5))
def test_matching_refuses_what_is_on_another_device(place):
    with imagined_gpu():
        given = list(matching_arguments())
        given[place] = given[place].to("cpu" if place < 4 else "cuda")
        for operation in (matching_cost, set_matching):
            with pytest.raises(ValueError, match=r"move them to one device|offsets is"):
                operation(*given)


def test_the_certificate_comes_back_to_the_gpu():
    with imagined_gpu():
        found = certified_assignment(torch.rand(2, 5, 9, device="cuda"))
        assert {x.device for x in found} == {GPU}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_zeros_do_not_wait(layout, dtype):
    with imagined_gpu() as gpu:
        maps = torch.randn(2, 3, 5, 6, device="cuda", dtype=dtype).to(memory_format=layout)
        extents = torch.ones(2, 2, dtype=torch.int64, device="cuda")
        with gpu.no_waiting():
            assert zero_outside_(maps, extents) is maps
            cleared = zero_outside(maps.requires_grad_(), extents)
            cleared.sum().backward()
        assert cleared.is_contiguous(memory_format=layout)
        assert maps.grad.device == GPU
        with pytest.raises(ValueError, match="extents are on cpu"):
            zero_outside(maps, extents.cpu())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("dtype", "size", "kernel"),
    [
        (torch.bfloat16, 32, True),
        (torch.float16, 128, True),
        (torch.float32, 40, True),
        (torch.float64, 32, False),
        (torch.float32, 8, False),
        (torch.float32, 256, False),
    ],
)
def test_attention_does_not_wait(dtype, size, kernel, padded, dropout):
    with imagined_gpu() as gpu:
        shapes = ((2, 4, 9, size), (2, 4, 30, size), (2, 4, 30, size))
        tensors = [torch.randn(s, device="cuda", dtype=dtype).requires_grad_() for s in shapes]
        extents = torch.ones(2, 2, dtype=torch.int64, device="cuda") if padded else None
        with gpu.no_waiting():
            out = attention(*tensors, extents, (5, 6), dropout)
            out.sum().backward()
        assert (out.dtype, out.device, out.shape) == (dtype, GPU, shapes[0])
        assert [x.grad.shape for x in tensors] == [x.shape for x in tensors]
        assert ("detr_fast::attention" in {name for name, _ in gpu.calls}) == kernel
        if padded:
            with pytest.raises(ValueError, match="extents are on cpu"):
                attention(*tensors, extents.cpu(), (5, 6))


# --- matchers -------------------------------------------------------------------------------------

MATCHERS = {
    "ours": lambda **options: HungarianMatcher(1, 5, 2, **options),
    "deformable": lambda **options: DeformableDetrMatcher(2, 5, 2, **options),
    "group": lambda **options: GroupDetrMatcher(2, 5, 2, **options),
    "rt-detr": lambda **options: RTDetrMatcher(
        {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}, use_focal_loss=True, **options
    ),
    "transformers": lambda **options: TransformersMatcher(1, 5, 2, **options),
}


def matched(name: str, outputs: dict, given: list[dict], **options) -> list:
    matcher = MATCHERS[name](**options)
    if name == "transformers":
        outputs = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
        given = [{"class_labels": each["labels"], "boxes": each["boxes"]} for each in given]
    return matcher(outputs, given)


@pytest.mark.parametrize("targets_on", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MATCHERS)
def test_a_matcher_on_the_gpu_waits_for_its_indices_alone(name, dtype, targets_on):
    with imagined_gpu() as gpu:
        outputs = predictions(dtype)
        given = on_gpu(targets()) if targets_on == "cuda" else targets()
        with gpu.no_waiting():
            stay = matched(name, outputs, given, index_device=None)
        gpu.waited()
        come = matched(name, outputs, given)
        (wait,) = gpu.waited()
        assert wait.endswith("to the host")
        for indices, device in ((stay, GPU), (come, torch.device("cpu"))):
            assert [(len(i), len(j)) for i, j in indices] == [(count, count) for count in COUNTS]
            assert {x.device for pair in indices for x in pair} == {device}


@pytest.mark.filterwarnings("ignore:an image has 7 targets")
@pytest.mark.parametrize("groups", [1, 3])
def test_groups(groups):
    with imagined_gpu() as gpu:
        matcher = GroupDetrMatcher(2, 5, 2, index_device=None)
        with gpu.no_waiting():
            found = matcher(predictions(), targets(), groups)
        expected = [groups * min(count, QUERIES // groups) for count in COUNTS]
        assert [len(i) for i, _ in found] == expected


def test_a_matcher_that_refuses_waits_to_see_what():
    with imagined_gpu() as gpu:
        HungarianMatcher(1, 5, 2, non_finite="raise", index_device=None)(predictions(), targets())
        assert gpu.waited() != []
        forbidding = HungarianMatcher(1, 5, 2, non_finite=float("inf"), index_device=None)
        found = forbidding(predictions(), targets())
        assert {x.device for pair in found for x in pair} == {GPU}


def test_the_matcher_of_transformers_waits_for_its_indices_alone():
    losses = pytest.importorskip("transformers.loss.loss_for_object_detection")
    from detr_fast.integrations import transformers as fast

    with fast.patched(), imagined_gpu() as gpu:
        outputs, given = predictions(), on_gpu(targets())
        outputs = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
        given = [{"class_labels": each["labels"], "boxes": each["boxes"]} for each in given]
        gpu.waited()
        found = losses.HungarianMatcher(1, 5, 2)(outputs, given)
        (wait,) = gpu.waited()
        assert wait.endswith("to the host")
        assert {x.device.type for pair in found for x in pair} == {"cpu"}

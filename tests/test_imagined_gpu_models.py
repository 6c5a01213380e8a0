"""The models on a GPU that is imagined: nothing is mixed, and the host waits for nothing."""

import pytest
import torch
from imagined_gpu import GPU, imagined_gpu

from detr_fast import build_model
from detr_fast.data.batching import nested_tensor_from_images

MODELS = ("detr_resnet50", "detr_resnet50_dc5", "detr_resnet101", "detr_resnet101_dc5")
SIZES = ((64, 90), (50, 70))


def samples(kind: str):
    images = [torch.randn(3, *size, device="cuda") for size in SIZES]
    if kind == "list":
        return images
    return nested_tensor_from_images(images) if kind == "padded" else images[0][None]


def learn(outputs: dict, *others: torch.Tensor) -> None:
    layers = [outputs, *outputs["aux_outputs"]]
    learned = [layer[key] for layer in layers for key in ("pred_logits", "pred_boxes")]
    sum(each.sum() for each in (*learned, *others)).backward()


@pytest.mark.parametrize("exact", [False, True], ids=["compatible", "exact"])
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward(name, exact):
    with imagined_gpu() as gpu:
        model = build_model(name, exact_batches=exact).to("cuda").train()
        for kind in ("list", "padded", "alone"):
            given = samples(kind)
            with gpu.no_waiting():
                outputs = model(given)
                learn(outputs)
            assert outputs["pred_boxes"].shape == (1 if kind == "alone" else 2, 100, 4)
            assert outputs["pred_boxes"].device == GPU
        learned = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.device == GPU for p in learned)
        ours = {call[0] for call in gpu.calls if call[0].startswith("detr_fast::")}
        assert ("detr_fast::zero_outside" in ours) == exact
        assert {"detr_fast::attention", "detr_fast::attention_backward"} <= ours


@pytest.mark.parametrize("exact", [False, True], ids=["compatible", "exact"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, exact):
    with imagined_gpu(autocast=True) as gpu:
        model = build_model("detr_resnet50", exact_batches=exact).to("cuda").train()
        given = samples("list")
        with gpu.no_waiting(), torch.autocast("cuda", dtype):
            outputs = model(given)
        assert outputs["pred_boxes"].dtype == torch.float32
        (attended,) = {
            str(call[1][0][1]) for call in gpu.calls if call[0] == "detr_fast::attention"
        }
        assert attended == str(dtype)


@pytest.mark.parametrize(
    "options", [{"position_embedding": "learned"}, {"pre_norm": True}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_options_and_types(dtype, options):
    with imagined_gpu() as gpu:
        model = build_model("detr_tiny", exact_batches=True, **options).to("cuda", dtype).train()
        images = [image.to(dtype) for image in samples("list")]
        with gpu.no_waiting():
            learn(model(images))


def test_attention_maps():
    with imagined_gpu() as gpu, torch.no_grad():
        model = build_model("detr_resnet50").to("cuda").eval()
        given = samples("list")
        with gpu.no_waiting():
            outputs = model(given, return_attention=True)
        assert outputs["attention"]["decoder"].shape == (6, 2, 8, 100, 2, 3)


@pytest.mark.parametrize("limit", [128 << 20, 1], ids=["at once", "one by one"])
@pytest.mark.parametrize("chosen", [False, True], ids=["all", "chosen"])
def test_masks(chosen, limit):
    """Queries that are chosen on the GPU, and those whose activations are computed again."""
    with imagined_gpu() as gpu:
        model = build_model("detr_resnet50_panoptic", num_queries=5).to("cuda").train()
        model.mask_head.memory_limit = limit
        given = samples("list")
        queries = [torch.zeros(n, dtype=torch.int64, device="cuda") for n in (3, 1)]
        with gpu.no_waiting():
            outputs = model(given, select=(lambda _: queries) if chosen else None)
            masks = outputs["selected_masks"] if chosen else outputs["pred_masks"]
            learn(outputs, *masks)
        counts = (3, 1) if chosen else (5, 5)
        assert [own.shape for own in masks] == [(count, 16, 23) for count in counts]

"""Post-processing against an independent implementation and against hand-made boxes."""

import pytest
import torch

from detr_fast.inference.postprocess import PostProcess


def outputs_of(images=2, queries=50, classes=91, dtype=torch.float32):
    return {
        "pred_logits": torch.randn(images, queries, classes + 1, dtype=dtype) * 3,
        "pred_boxes": torch.rand(images, queries, 4, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_as_transformers(dtype):
    processing = pytest.importorskip("transformers.models.detr.image_processing_detr")
    from types import SimpleNamespace

    outputs = outputs_of(dtype=dtype)
    sizes = torch.tensor([[480, 640], [1333, 800]])
    expected = processing.DetrImageProcessor().post_process_object_detection(
        SimpleNamespace(logits=outputs["pred_logits"], pred_boxes=outputs["pred_boxes"]),
        threshold=-1,
        target_sizes=sizes,
    )
    for ours, theirs in zip(PostProcess()(outputs, sizes), expected, strict=True):
        assert ours["boxes"].dtype == dtype
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_box_in_pixels_of_the_original_image():
    outputs = {
        "pred_logits": torch.tensor([[[0.0, 9.0, 0.0]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]),
    }
    (result,) = PostProcess()(outputs, torch.tensor([[100, 200]]))
    torch.testing.assert_close(result["boxes"], torch.tensor([[80.0, 30.0, 120.0, 70.0]]))
    assert result["labels"].tolist() == [1]


def test_no_object_is_never_the_class_and_lowers_the_score():
    outputs = {"pred_logits": torch.tensor([[[1.0, 2.0, 9.0]]]), "pred_boxes": torch.rand(1, 1, 4)}
    (result,) = PostProcess()(outputs, torch.tensor([[10, 10]]))
    assert result["labels"].tolist() == [1]
    assert result["scores"].item() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32(dtype):
    outputs = outputs_of(dtype=dtype)
    sizes = torch.tensor([[4001, 6003]] * 2)
    in_float32 = PostProcess()({k: v.float() for k, v in outputs.items()}, sizes)
    with torch.autocast("cpu", torch.bfloat16):
        results = PostProcess()(outputs, sizes)
    for ours, expected in zip(results, in_float32, strict=True):
        assert ours["boxes"].dtype == ours["scores"].dtype == torch.float32
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_gradients_are_not_kept():
    outputs = {k: v.requires_grad_() for k, v in outputs_of().items()}
    (first, _) = PostProcess()(outputs, torch.tensor([[10, 10]] * 2))
    assert not first["boxes"].requires_grad


@pytest.mark.parametrize("sizes", [torch.ones(1, 2), torch.ones(2, 3), torch.ones(2)])
def test_wrong_sizes_are_an_error(sizes):
    with pytest.raises(ValueError, match="one \\(height, width\\) for each of the 2 images"):
        PostProcess()(outputs_of(), sizes)

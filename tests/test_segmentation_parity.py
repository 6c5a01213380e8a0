"""Masks against Hugging Face transformers' `DetrForSegmentation`, weights carried over by name.

Its mask head computes what the original's does (facebookresearch/detr, models/segmentation.py),
with these differences, none of which the original's models can show:

* Group norms have min(8, channels) groups there and 8 in the original, whose layers have at least
  16 channels.
* A padded position gets the lowest finite score there, and minus infinity in the original and
  here. They differ for an image without any valid token: uniform attention there, NaN in the
  original, zeros here.
* In training with a frozen detector the original leaves dropout on in it; here it is off.

`test_model_parity` names the differences of the detector.
"""

import pytest
import tolerances
import torch
from test_model_parity import MIXED, SINGLE, random_images, randomise
from transformers_detr import carried_over, configuration

from detr_fast import build_model
from detr_fast.data.batching import nested_tensor_from_images

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

HEAD_RENAMES = (
    ("bbox_attention.q_linear.", "bbox_attention.q_proj."),
    ("bbox_attention.k_linear.", "bbox_attention.k_proj."),
    ("mask_head.lay1.", "mask_head.conv1.conv."),
    ("mask_head.gn1.", "mask_head.conv1.norm."),
    ("mask_head.lay2.", "mask_head.conv2.conv."),
    ("mask_head.gn2.", "mask_head.conv2.norm."),
    *(
        (f"mask_head.{ours}{i + shift}.", f"mask_head.fpn_stages.{i - 1}.{theirs}.")
        for i in (1, 2, 3)
        for ours, shift, theirs in (
            ("adapter", 0, "fpn_adapter"),
            ("lay", 2, "refine.conv"),
            ("gn", 2, "refine.norm"),
        )
    ),
    ("mask_head.out_lay.", "mask_head.output_conv."),
)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("detr_resnet50_panoptic", MIXED), ("detr_resnet50_dc5_panoptic", SINGLE)],
    ids=["mixed", "dc5"],
)
def test_logits_boxes_and_masks_agree(name, sizes):
    ours, theirs = segmentation_pair(name)
    images = random_images(sizes)
    batch = nested_tensor_from_images(images)
    with torch.no_grad():
        actual = ours(images)
        expected = theirs(pixel_values=batch.tensors, pixel_mask=(~batch.mask).long())
    for key, value in (
        ("pred_logits", expected.logits),
        ("pred_boxes", expected.pred_boxes),
        ("pred_masks", expected.pred_masks),
    ):
        assert actual[key].shape == value.shape
        assert value.std() > 1e-3, f"{key} hardly varies: the comparison would show nothing"
        torch.testing.assert_close(actual[key], value, rtol=0, atol=tolerances.MODEL_FLOAT64)


def segmentation_pair(name: str):
    """The same random model twice, ours and theirs, in float64 and evaluation mode."""
    torch.manual_seed(1)
    # Few layers and queries: `test_model_parity` compares whole detectors.
    ours = build_model(name, num_queries=9, enc_layers=1, dec_layers=2).double().eval()
    randomise(ours.detr)
    for parameter in ours.mask_head.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    with torch.device("meta"):
        theirs = transformers.DetrForSegmentation(configuration(ours.config, "eager")).eval()
    state = ours.state_dict()
    detector = {k.removeprefix("detr."): v for k, v in state.items() if k.startswith("detr.")}
    carried = {f"detr.{name}": value for name, value in carried_over(detector).items()}
    for name, value in state.items():
        if not name.startswith("detr."):
            for here, there in HEAD_RENAMES:
                name = name.replace(here, there)
            carried[name] = value
    theirs.load_state_dict(carried, strict=True, assign=True)
    return ours, theirs

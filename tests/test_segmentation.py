"""The mask head: equality with the plain one, chosen queries, chunks, gradients, freezing."""

import pytest
import tolerances
import torch
from torch import nn

from detr_fast import build_model
from detr_fast.models.segmentation import AttentionMaps, MaskHead
from detr_fast.reference import mask_head as reference
from detr_fast.reference.zero_outside import outside

OPTIONS = {
    "num_classes": 5,
    "num_queries": 7,
    "hidden_dim": 128,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 32,
    "dropout": 0.0,
    "backbone": "resnet_tiny",
}
SIZES = ((75, 99), (64, 40))


@pytest.fixture(scope="module")
def model():
    """A small model in float64 and evaluation mode, its norms away from their start."""
    torch.manual_seed(5)
    model = build_model("detr_resnet50_panoptic", **OPTIONS).double().eval()
    for parameter in model.mask_head.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    return model


def images():
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in SIZES]


def close(actual, expected, atol=tolerances.MASK_HEAD_FLOAT64):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def head_inputs(generator, sizes, channels, batch=2, width=32, nheads=8, queries=5):
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    (height, breadth), *finer = sizes
    attention = random(batch, queries, nheads * height * breadth).softmax(-1)
    return (
        random(batch, width, height, breadth),
        attention.view(batch, queries, nheads, height, breadth),
        [random(batch, c, *size) for c, size in zip(channels, finer, strict=True)],
    )


# Equality with the plain head


@pytest.mark.parametrize(
    "sizes",
    [
        ((3, 4), (5, 8), (10, 15)),
        # The last stage dilated (DC5), odd sizes, one row.
        ((5, 7), (5, 7), (9, 13)),
        ((1, 2), (1, 3), (2, 5)),
        ((4, 4),),
    ],
)
def test_head_equals_the_plain_one(sizes):
    generator = torch.Generator().manual_seed(7)
    channels = (24, 16)[: len(sizes) - 1]
    head = MaskHead(64, 8, channels).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, 0.05, 0.2, generator=generator)
    features, attention, pyramid = head_inputs(generator, sizes, channels, width=64)
    weights = dict(head.named_parameters())
    expected = reference.mask_head(weights, features, attention, pyramid)
    assert expected.std() > 1e-2
    close(torch.stack(head(features, list(attention), pyramid)), expected)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_the_plain_one(padded):
    generator = torch.Generator().manual_seed(8)
    maps = AttentionMaps(32, 4).double()
    states = torch.randn(2, 6, 32, generator=generator, dtype=torch.float64)
    memory = torch.randn(2, 32, 3, 5, generator=generator, dtype=torch.float64)
    extents = torch.tensor([[3, 5], [2, 3]]) if padded else None
    mask = outside(extents, 3, 5) if padded else None
    expected = reference.attention_maps(dict(maps.named_parameters()), states, memory, mask, 4)
    actual = torch.stack(maps(list(states), memory, extents))
    close(actual, expected)
    close(actual.flatten(2).sum(-1), torch.ones(2, 6, dtype=torch.float64))
    if padded:
        assert actual[1, :, :, 2].count_nonzero() == 0


# Which queries get masks


@torch.no_grad()
def test_chosen_queries_have_the_masks_of_all(model):
    everything = model(images())
    chosen = [torch.tensor([4, 0, 4]), torch.tensor([6])]
    outputs = model(images(), select=lambda outputs: chosen)
    assert "pred_masks" not in outputs
    assert outputs["selected_queries"] == chosen
    for i, queries in enumerate(chosen):
        close(outputs["selected_masks"][i], everything["pred_masks"][i, queries])
    assert torch.equal(outputs["pred_logits"], everything["pred_logits"])


@torch.no_grad()
def test_no_query_needs_a_mask(model):
    nothing = torch.empty(0, dtype=torch.int64)
    masks = model(images(), select=lambda outputs: [nothing, nothing])["selected_masks"]
    assert [tuple(own.shape) for own in masks] == [(0, 19, 25)] * 2


@torch.no_grad()
def test_predictions_are_those_of_the_detector_alone(model):
    outputs, alone = model(images(), return_attention=True), model.detr(images(), True)
    assert outputs["pred_masks"].shape == (2, 7, 19, 25)
    for key in ("pred_logits", "pred_boxes"):
        assert torch.equal(outputs[key], alone[key])
        assert torch.equal(outputs["aux_outputs"][0][key], alone["aux_outputs"][0][key])
    assert torch.equal(outputs["attention"]["decoder"], alone["attention"]["decoder"])


# Chunks


@pytest.mark.parametrize("limit", [1, 300_000])
def test_memory_limit_changes_no_result_and_no_gradient(model, limit, monkeypatch):
    def masks_and_gradients():
        model.zero_grad()
        masks = model(images())["pred_masks"]
        masks.square().sum().backward()
        return masks.detach(), [p.grad.clone() for p in model.mask_head.parameters()]

    expected, expected_gradients = masks_and_gradients()
    monkeypatch.setattr(model.mask_head, "memory_limit", limit)
    passes = []
    hook = model.mask_head.lay2.register_forward_hook(lambda m, a, out: passes.append(len(out)))
    actual, gradients = masks_and_gradients()
    hook.remove()
    assert len(passes) > 2
    assert max(passes) < 14
    close(actual, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        close(ours, theirs, atol=1e-10 * float(theirs.abs().max().clamp(min=1)))


# Training


def test_frozen_detector_learns_nothing_and_stays_in_evaluation_mode():
    model = build_model(
        "detr_resnet50_panoptic", **OPTIONS, freeze_detr=True, backbone_norm="batch"
    )
    model.train()
    assert model.training
    assert model.mask_head.training
    assert not any(module.training for module in model.detr.modules())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = model([image.float() for image in images()])["pred_masks"]
    masks.mean().backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name in before if not name.startswith("detr.")}
    assert all(model.get_parameter(name).grad is not None for name in learning)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_an_image_without_chosen_queries_leaves_a_gradient():
    model = build_model("detr_resnet50_panoptic", **OPTIONS)
    nothing = torch.empty(0, dtype=torch.int64)
    outputs = model([image.float() for image in images()], select=lambda o: [nothing, nothing])
    torch.cat(outputs["selected_masks"]).sum().backward()
    assert all(p.grad is not None for p in model.mask_head.parameters())


def test_exact_batches_are_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="not to be had with masks"):
        build_model("detr_resnet50_panoptic", exact_batches=True)


def test_widths_that_group_norms_cannot_divide_are_refused():
    with pytest.raises(ValueError, match=r"hidden_dim is 64 with nheads 8.*72, 32, 16, 8, 4 chan"):
        build_model("detr_resnet50_panoptic", **{**OPTIONS, "hidden_dim": 64})


@pytest.mark.parametrize(
    "select", [None, lambda outputs: [torch.tensor([0, 2]), torch.tensor([1])]]
)
def test_16_bit_autocast_trains(select):
    model = build_model("detr_resnet50_panoptic", **OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model([image.float() for image in images()], select=select)
    masks = outputs["pred_masks"] if select is None else torch.cat(outputs["selected_masks"])
    masks.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.mask_head.parameters())
    assert outputs["pred_logits"].dtype == torch.float32

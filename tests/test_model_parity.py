"""DETR against Hugging Face transformers: random weights carried over by name, in float64.

Where the two definitions differ, and what that means here:

* Intermediate layers. With `auxiliary_loss=True` transformers feeds the *normalised* state of a
  decoder layer to the next one, and normalises the last state twice; DETR, and its own
  `auxiliary_loss=False`, normalise only what the heads read. The comparison therefore takes
  `auxiliary_loss=False` and applies norm and heads to each layer's output, caught by a hook.
* Attention projections: three matrices there, one `in_proj` of three blocks (query, key, value)
  here and in the original checkpoints.
* Masks: 1 on pixels there, True on padding here. Both shrink them by nearest interpolation.
* A padded key gets the lowest finite score there and minus infinity here; both weigh exactly 0.
  They differ only for an image without any valid token: uniform weights there, zeros here.
* Training only: transformers drops out the encoder's input, and neither attention weights nor the
  feed-forward's hidden layer, where the original drops the latter two and not the former.
"""

import pytest
import tolerances
import torch
from transformers_detr import transformers_detr

from detr_fast import build_model
from detr_fast.data.batching import nested_tensor_from_images

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("timm", reason="timm is not installed")

MIXED = ((97, 130), (160, 88), (64, 64))
SINGLE = ((101, 149),)


@pytest.mark.parametrize("sizes", [MIXED, SINGLE], ids=["mixed", "single"])
@pytest.mark.parametrize("name", ["detr_resnet50", "detr_resnet50_dc5", "detr_resnet101"])
def test_all_layers_agree(name, sizes, pairs):
    ours, theirs = pairs(name)
    images = random_images(sizes)
    with torch.no_grad():
        actual = all_layers(ours(images))
        expected, _ = their_layers(theirs, images)
    assert actual["pred_logits"].shape == (6, len(sizes), 100, 92)
    for key, value in expected.items():
        assert value.std() > 1e-3, f"{key} hardly varies: the comparison would show nothing"
        torch.testing.assert_close(actual[key], value, rtol=0, atol=tolerances.MODEL_FLOAT64)


def test_learned_positions_agree():
    ours, theirs = pair(
        "detr_resnet50", position_embedding="learned", enc_layers=1, dec_layers=2, num_classes=5
    )
    images = random_images(MIXED)
    with torch.no_grad():
        actual = all_layers(ours(images))
        expected, _ = their_layers(theirs, images)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=tolerances.MODEL_FLOAT64)


def test_attention_maps_agree(pairs):
    ours, theirs = pairs("detr_resnet50")
    images = random_images(MIXED)
    with torch.no_grad():
        attention = ours(images, return_attention=True)["attention"]
        _, outputs = their_layers(theirs, images, attention=True)
    for actual, expected in (
        (attention["encoder"].flatten(4).flatten(2, 3), outputs.encoder_attentions[-1]),
        (attention["decoder"].flatten(4), torch.stack(outputs.cross_attentions)),
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerances.MODEL_FLOAT64)


@pytest.fixture(scope="module")
def pairs():
    """`pair`, remembering the last one built: a pair of R101 in float64 fills a gigabyte."""
    last = {}

    def remembered(name):
        if name not in last:
            last.clear()
            last[name] = pair(name)
        return last[name]

    return remembered


def pair(name: str, **options):
    """The same random model twice, ours and theirs, in float64 and evaluation mode."""
    torch.manual_seed(1)
    ours = build_model(name, **options).double().eval()
    randomise(ours)
    return ours, transformers_detr(ours, "eager")


def randomise(model) -> None:
    """Random batch norms that keep a deep ResNet's activations of order one, and wide heads."""
    for name, buffer in model.backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("bias"):
            buffer.uniform_(-0.1, 0.1)
        else:
            # A small last scale of each residual branch, or a hundred layers add up.
            last = name.endswith("bn3.weight")
            buffer.uniform_(0.1, 0.3) if last else buffer.uniform_(0.7, 1.3)
    for name, parameter in model.named_parameters():
        if "transformer" in name and parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.bbox_embed.layers[-1].weight.data.mul_(4)


def random_images(sizes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


def all_layers(outputs: dict) -> dict[str, torch.Tensor]:
    """Predictions of every decoder layer, first layer first: (S, B, Q, ...)."""
    layers = [*outputs["aux_outputs"], outputs]
    return {key: torch.stack([layer[key] for layer in layers]) for key in layers[0]}


def their_layers(model, images, attention: bool = False):
    batch = nested_tensor_from_images(images)
    # Hooks rather than `output_hidden_states`, whose last entry is already normalised.
    states = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: states.append(output))
        for layer in model.model.decoder.layers
    ]
    outputs = model(
        pixel_values=batch.tensors,
        pixel_mask=(~batch.mask).long(),
        output_attentions=attention,
    )
    for hook in hooks:
        hook.remove()
    hidden = model.model.decoder.layernorm(torch.stack(states))
    layers = {
        "pred_logits": model.class_labels_classifier(hidden),
        "pred_boxes": model.bbox_predictor(hidden).sigmoid(),
    }
    assert torch.equal(layers["pred_logits"][-1], outputs.logits)
    return layers, outputs

"""The models: checkpoint names, counts, inputs, attention, encodings, precision, the demo."""

import json
import math
from functools import cache

import pytest
import tolerances
import torch
import torch.nn.functional as F
from torch import nn

from detr_fast import build_model
from detr_fast.data.batching import NestedTensor, nested_tensor_from_images
from detr_fast.data.shapes import SHAPES_LABEL_MAP
from detr_fast.models.attention import MultiheadAttention
from detr_fast.models.backbone import Backbone
from detr_fast.models.padding import image_extents, nearest
from detr_fast.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from detr_fast.models.transformer import TransformerDecoderLayer, TransformerEncoderLayer
from detr_fast.models.work import count_work
from detr_fast.reference.zero_outside import outside

OFFICIAL = (
    "detr_resnet50",
    "detr_resnet50_dc5",
    "detr_resnet101",
    "detr_resnet101_dc5",
    "detr_resnet50_panoptic",
    "detr_resnet50_dc5_panoptic",
    "detr_demo",
)


@cache
def on_meta(name: str, **options):
    """A model of shapes only; shared between tests, which must not change it."""
    with torch.device("meta"):
        return build_model(name, **options).eval()


@pytest.fixture(scope="module")
def tiny():
    """A small model in float64 and evaluation mode."""
    torch.manual_seed(3)
    return build_model("detr_tiny", num_queries=10, dim_feedforward=64).double().eval()


def images(*sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(3, *size, generator=generator, dtype=dtype) for size in sizes]


def close(actual, expected, atol=tolerances.MODEL_REASSOCIATED_FLOAT64):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# Checkpoint names and counts


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_and_shapes_are_those_of_the_original_checkpoints(name, shared_data):
    keys = json.loads((shared_data / "checkpoint_keys.json").read_text())
    expected = keys[name.replace("_dc5", "")]
    model = on_meta(name)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    # An optimizer state follows the order of parameters, which follows that of names.
    assert list(model.state_dict()) == list(expected)
    state = {k: torch.empty(shape, device="meta") for k, shape in expected.items()}
    model.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"),
    [
        # FrozenBatchNorm's numbers are buffers and not counted as parameters; the 222,400 of the
        # fixed stem and first stage are counted, though they do not learn.
        ("detr_resnet50", 41_524_768, 81.2),
        ("detr_resnet50_dc5", 41_524_768, 173.3),
        ("detr_resnet101", 60_464_672, 144.7),
        ("detr_resnet101_dc5", 60_464_672, 236.7),
    ],
)
def test_parameters_and_multiply_adds_at_800_by_1066(name, parameters, gmac):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters - 222_400
    work = count_work(model, (1, 3, 800, 1066))
    assert work.flops / 2e9 == pytest.approx(gmac, abs=0.05)


def test_tiny_is_small_and_knows_as_many_classes_as_there_are_shapes():
    model = on_meta("detr_tiny")
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
    assert sum(t.numel() for t in model.state_dict().values()) * 2 < 8e6
    assert model.num_classes == len(SHAPES_LABEL_MAP)


# Inputs and outputs


def test_lists_batches_and_tensors_give_the_same(tiny):
    same = images((64, 96), (64, 96))
    mixed = images((64, 96), (80, 48))
    with torch.no_grad():
        from_list, from_tensor = tiny(same), tiny(torch.stack(same))
        from_batch = tiny(nested_tensor_from_images(same))
        for key in ("pred_logits", "pred_boxes"):
            assert torch.equal(from_list[key], from_tensor[key])
            close(from_batch[key], from_tensor[key])
            assert torch.equal(tiny(mixed)[key], tiny(nested_tensor_from_images(mixed))[key])


def test_outputs_of_all_layers(tiny):
    outputs = tiny(images((64, 96), (80, 48)))
    assert outputs["pred_logits"].shape == (2, 10, 7)
    assert outputs["pred_boxes"].shape == (2, 10, 4)
    assert ((outputs["pred_boxes"] > 0) & (outputs["pred_boxes"] < 1)).all()
    assert [layer.keys() for layer in outputs["aux_outputs"]] == [{"pred_logits", "pred_boxes"}] * 2
    assert not torch.equal(outputs["aux_outputs"][1]["pred_boxes"], outputs["pred_boxes"])


def test_without_auxiliary_losses_only_the_last_layer_remains(tiny):
    one = build_model(**{**tiny.config, "aux_loss": False}).double().eval()
    one.load_state_dict(tiny.state_dict())
    batch = images((64, 96))
    outputs = one(batch)
    assert set(outputs) == {"pred_logits", "pred_boxes"}
    close(outputs["pred_logits"], tiny(batch)["pred_logits"])


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, (3, 4)),
        ({"backbone_stage": 3}, (5, 7)),
        ({"backbone_stage": 2}, (9, 13)),
        ({"dilation": True}, (5, 7)),
        ({"backbone_stage": 3, "dilation": True}, (9, 13)),
    ],
)
def test_stride_follows_stage_and_dilation(options, grid):
    model = on_meta("detr_resnet50", enc_layers=1, dec_layers=1, **options)
    x = torch.empty(1, 3, 65, 98, device="meta")
    features, _, pos = model.backbone(x, None)
    stride = model.backbone[0].stride
    assert features.shape[-2:] == grid == (math.ceil(65 / stride), math.ceil(98 / stride))
    assert pos.shape == (1, 256, *grid)


def test_depths_widths_and_other_backbones():
    model = build_model(
        "detr_resnet50",
        backbone="resnet18",
        enc_layers=0,
        dec_layers=1,
        hidden_dim=32,
        nheads=2,
        dim_feedforward=16,
        num_queries=3,
        num_classes=2,
        position_embedding="learned",
    )
    outputs = model(images((40, 50), dtype=torch.float32), return_attention=True)
    assert outputs["pred_logits"].shape == (1, 3, 3)
    assert outputs["aux_outputs"] == []
    assert set(outputs["attention"]) == {"decoder"}


@pytest.mark.parametrize(
    ("samples", "error", "match"),
    [
        ([], ValueError, "empty list"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], TypeError, "torch.uint8.*divided by 255"),
        (torch.zeros(3, 8, 8), ValueError, r"shape \(3, 8, 8\).*pass \[image\]"),
        ([torch.zeros(1, 3, 8, 8)], ValueError, r"image 0.*\(1, 3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), ValueError, "8 channels"),
        (torch.zeros(0, 3, 8, 8), ValueError, "no axis may be empty"),
        ([torch.zeros(1, 8, 8)], ValueError, "1 channels"),
        (["a.jpg"], TypeError, "list with str.*Detector"),
        ("a.jpg", TypeError, "is a str;"),
        (None, TypeError, "is a NoneType;"),
    ],
)
def test_wrong_inputs_are_explained(tiny, samples, error, match):
    with pytest.raises(error, match=match):
        tiny(samples)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hidden_dim": 100, "nheads": 8}, "multiple of both"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_queries": 2.5}, "num_queries is 2.5"),
        ({"dec_layers": 0}, "dec_layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"position_embedding": "sin"}, "did you mean 'sine'"),
        ({"backbone": "resnet5"}, "did you mean 'resnet50'"),
        ({"backbone": "vit_b_16"}, "is unknown"),
        ({"backbone_norm": "froze"}, "did you mean 'frozen'"),
        ({"backbone_stage": 5}, "must be 2"),
        ({"backbone_weights": "coco"}, "None or 'imagenet'"),
        ({"backbone": "resnet_tiny", "backbone_weights": "imagenet"}, "nobody trained"),
        ({"backbone": "resnet18", "dilation": True}, "cannot be dilated"),
    ],
)
def test_wrong_options_are_explained(options, match):
    with pytest.raises(ValueError, match=match):
        on_meta("detr_resnet50", **options)


# The backbone


def test_what_learns_in_the_backbone():
    def learning(**options):
        body = Backbone("resnet18", **options).body
        return {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad}

    assert learning() == {"layer2", "layer3", "layer4"}
    assert learning(trainable=False) == set()
    assert learning(norm="batch", stage=3) == {"conv1", "bn1", "layer1", "layer2", "layer3"}


def test_statistics_move_only_in_a_backbone_that_learns():
    for trainable in (True, False):
        backbone = Backbone("resnet_tiny", norm="batch", stage=3, trainable=trainable).train()
        before = backbone.body.bn1.running_mean.clone()
        backbone(torch.randn(2, 3, 32, 32))
        assert torch.equal(before, backbone.body.bn1.running_mean) is not trainable


def test_nearest_extents_keep_the_first_token_of_the_smallest_image():
    assert nearest(torch.tensor([[1, 1], [333, 97]]), (333, 97), (11, 4)).tolist() == [
        [1, 1],
        [11, 4],
    ]


def test_nearest_extents_are_those_of_the_interpolated_mask():
    generator = torch.Generator().manual_seed(5)
    for stride in (8, 16, 32):
        for _ in range(40):
            canvas = torch.randint(1, 400, (2,), generator=generator)
            extents = torch.stack(
                [torch.randint(0, n + 1, (9,), generator=generator) for n in canvas], 1
            )
            canvas, grid = canvas.tolist(), (-(-canvas // stride)).tolist()
            mask = outside(extents, *canvas)
            interpolated = F.interpolate(mask[None].float(), size=grid)[0].bool()
            present = extents.amin(1, keepdim=True) > 0
            assert torch.equal(outside(nearest(extents, canvas, grid), *grid), interpolated)
            assert torch.equal(image_extents(mask), extents * present)


# Position encodings


def test_sine_encoding_is_the_formula():
    features = torch.zeros(2, 1, 5, 7, dtype=torch.float64)
    encoding = SinePositionEncoding(6)(features, torch.tensor([[5, 7], [3, 4]]))
    assert encoding.shape == (2, 12, 5, 7)
    for b, (height, width) in enumerate([(5, 7), (3, 4)]):
        for row in range(height):
            for column in range(width):
                expected = []
                for index, extent in ((row, height), (column, width)):
                    coordinate = (index + 1) / (extent + 1e-6) * 2 * math.pi
                    for channel in range(6):
                        angle = coordinate / 10000 ** (2 * (channel // 2) / 6)
                        expected.append(math.cos(angle) if channel % 2 else math.sin(angle))
                expected = torch.tensor(expected, dtype=torch.float64)
                close(encoding[b, :, row, column], expected)
    close(SinePositionEncoding(6)(features, None)[0], encoding[0])


def test_sine_encoding_is_computed_in_float32_for_halves():
    features = torch.zeros(1, 1, 9, 30)
    wide = SinePositionEncoding(64)(features, None)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = SinePositionEncoding(64)(features.to(dtype), None)
        assert torch.equal(narrow, wide.to(dtype))


def test_learned_encoding_joins_columns_and_rows():
    encoding = LearnedPositionEncoding(4)
    out = encoding(torch.zeros(2, 1, 3, 5), None)
    assert out.shape == (2, 8, 3, 5)
    assert torch.equal(out[1, :4, 2, 4], encoding.col_embed.weight[4])
    assert torch.equal(out[1, 4:, 2, 4], encoding.row_embed.weight[2])
    with pytest.raises(ValueError, match=r"51 x 3 tokens.*50 rows"):
        encoding(torch.zeros(1, 1, 51, 3), None)


# Attention and transformer


def test_attention_is_torch_multihead_attention():
    ours = MultiheadAttention(32, 4).double()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).double()
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = (torch.randn(2, n, 32, dtype=torch.float64) for n in (5, 9, 9))
    extents = torch.tensor([[3, 3], [2, 1]])
    padding = outside(extents, 3, 3).flatten(1)
    for given, mask in (((), None), ((extents, (3, 3)), padding)):
        out, weights = ours(query, key, value, *given, return_weights=True)
        expected, expected_weights = theirs(query, key, value, mask, average_attn_weights=False)
        close(out, expected)
        close(weights, expected_weights)


def test_an_image_without_valid_tokens_gives_zeros_and_harms_no_other():
    attention = MultiheadAttention(16, 2).double()
    nn.init.normal_(attention.out_proj.bias)
    x = torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)
    extents = torch.tensor([[2, 3], [0, 3]])
    out, weights = attention(x, x, x, extents, (2, 3), return_weights=True)
    close(out[1], attention.out_proj.bias.expand(6, -1))
    assert not weights[1].any()
    close(out[0], attention(x[:1], x[:1], x[:1])[0][0])
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, attention.in_proj_weight))


def test_a_model_survives_an_empty_image(tiny):
    (image,) = images((64, 96))
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1] = True
    with torch.no_grad():
        outputs = tiny(NestedTensor(torch.stack([image, image]), mask))
        alone = tiny([image])
    for key in ("pred_logits", "pred_boxes"):
        assert outputs[key].isfinite().all()
        close(outputs[key][:1], alone[key])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_are_torch_layers_where_positions_are_zero(pre_norm):
    options = {"batch_first": True, "norm_first": pre_norm, "dtype": torch.float64}
    memory, tgt = (torch.randn(2, n, 32, dtype=torch.float64) for n in (7, 5))
    extents, grid = torch.tensor([[5, 1], [7, 1]]), (7, 1)
    padding = outside(extents, *grid).flatten(1)

    encoder = TransformerEncoderLayer(32, 4, 48, 0.0, pre_norm).double()
    expected = nn.TransformerEncoderLayer(32, 4, 48, 0.0, **options)
    encoder.load_state_dict(expected.state_dict(), strict=True)
    close(
        encoder(memory, torch.zeros_like(memory), extents, grid)[0],
        expected(memory, src_key_padding_mask=padding),
    )

    decoder = TransformerDecoderLayer(32, 4, 48, 0.0, pre_norm).double()
    expected = nn.TransformerDecoderLayer(32, 4, 48, 0.0, **options)
    decoder.load_state_dict(expected.state_dict(), strict=True)
    close(
        decoder(tgt, memory, torch.zeros_like(memory), extents, grid, torch.zeros_like(tgt))[0],
        expected(tgt, memory, memory_key_padding_mask=padding),
    )


def test_positions_join_queries_and_keys_and_never_values():
    layer = TransformerEncoderLayer(16, 2, 16, 0.0, pre_norm=False).double()
    src = torch.randn(1, 4, 16, dtype=torch.float64)
    with torch.no_grad():
        layer.self_attn.in_proj_weight[:32] = 0
    # With constant queries and keys the attention is uniform, whatever the positions.
    outputs = [
        layer(src, pos, None, (2, 2))[0] for pos in (torch.randn_like(src), torch.zeros_like(src))
    ]
    close(*outputs)


def test_attention_maps_leave_the_predictions_untouched(tiny):
    batch = images((64, 96), (80, 48))
    with torch.no_grad():
        plain, mapped = tiny(batch), tiny(batch, return_attention=True)
    for key in ("pred_logits", "pred_boxes"):
        assert torch.equal(plain[key], mapped[key])
    encoder, decoder = mapped["attention"]["encoder"], mapped["attention"]["decoder"]
    assert encoder.shape == (2, 8, 10, 12, 10, 12)
    assert decoder.shape == (3, 2, 8, 10, 10, 12)
    close(decoder.sum((-2, -1)), torch.ones_like(decoder[..., 0, 0]))
    assert not decoder[:, 1, ..., 6:].any()  # 48 of 96 pixels: 6 of 12 columns
    assert not encoder[1, ..., 6:].any()


def test_dropout_acts_in_training_alone(tiny):
    model = build_model(**tiny.config)
    batch = images((32, 32), dtype=torch.float32)
    assert not torch.equal(model(batch)["pred_boxes"], model(batch)["pred_boxes"])
    model.eval()
    assert torch.equal(model(batch)["pred_boxes"], model(batch)["pred_boxes"])


def test_fresh_weights_are_the_originals_distribution():
    model = build_model("detr_tiny", hidden_dim=64, nheads=4)
    for name, parameter in model.transformer.named_parameters():
        parameter = parameter.detach()
        if parameter.dim() > 1:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert parameter.abs().max() <= bound, name
            assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        elif "attn" in name:
            assert not parameter.any(), name
    assert model.query_embed.weight.detach().std() == pytest.approx(1, rel=0.1)


def test_every_trainable_parameter_gets_a_gradient(tiny):
    model = build_model(**tiny.config)
    outputs = model(images((64, 64), (48, 80), dtype=torch.float32))
    layers = [outputs, *outputs["aux_outputs"]]
    sum(layer[key].square().sum() for layer in layers for key in layer if "pred" in key).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


# Precision and compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_heads_in_float32(tiny, dtype):
    model = build_model(**tiny.config).eval()
    model.load_state_dict(tiny.state_dict())
    batch = images((64, 96), (80, 48), dtype=torch.float32)
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast("cpu", dtype):
            actual = model(batch)
    for key in ("pred_logits", "pred_boxes"):
        assert actual[key].dtype == torch.float32
        assert not torch.equal(actual[key], expected[key])
        close(actual[key], expected[key], tolerances.MODEL_AUTOCAST)


def test_a_model_in_bfloat16_runs(tiny):
    model = build_model(**tiny.config).eval().bfloat16()
    outputs = model(images((64, 96), (80, 48), dtype=torch.bfloat16))
    assert outputs["pred_boxes"].dtype == torch.bfloat16
    assert outputs["pred_boxes"].isfinite().all()


@pytest.mark.parametrize("padded", [True, False])
def test_compiles_as_one_graph(padded):
    torch.compiler.reset()
    model = build_model("detr_tiny", enc_layers=1, dec_layers=1).double().eval()
    batch = images((64, 96), (80, 48))
    samples = nested_tensor_from_images(batch) if padded else batch[:1]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, actual = model(samples), compiled(samples)
    for key in ("pred_logits", "pred_boxes"):
        close(actual[key], expected[key])


# The zoo's promise


@pytest.mark.parametrize("name", ["detr_resnet50_dc5", "detr_demo", "detr_tiny"])
def test_config_rebuilds_the_model(name):
    model = on_meta(name, num_classes=3, num_queries=7)
    with torch.device("meta"):
        again = build_model(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert (again.num_classes, again.num_queries) == (3, 7)


# The demo


@pytest.fixture(scope="module")
def demo():
    torch.manual_seed(5)
    return build_model("detr_demo", hidden_dim=32, enc_layers=1, dec_layers=2).double().eval()


def test_demo_is_the_papers_listing(demo):
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        actual = demo(list(x))
        h = demo.conv(demo.backbone(x))
        height, width = h.shape[-2:]
        pos = torch.cat(
            [
                demo.col_embed[:width].unsqueeze(0).repeat(height, 1, 1),
                demo.row_embed[:height].unsqueeze(1).repeat(1, width, 1),
            ],
            dim=-1,
        )
        src = (pos + 0.1 * h.permute(0, 2, 3, 1)).flatten(1, 2)
        tgt = demo.query_pos.repeat(2, 1, 1)
        states = demo.transformer(src, tgt)
    close(actual["pred_logits"], demo.linear_class(states))
    close(actual["pred_boxes"], demo.linear_bbox(states).sigmoid())
    assert set(actual) == {"pred_logits", "pred_boxes"}


def test_demo_says_what_it_cannot_do(demo):
    with pytest.raises(ValueError, match=r"different sizes.*no masks"):
        demo(images((64, 96), (80, 48)))
    with pytest.raises(ValueError, match="51 x 1 tokens"):
        demo(torch.zeros(1, 3, 1601, 8, dtype=torch.float64))
    with pytest.raises(TypeError, match="no option 'dropout'"):
        on_meta("detr_demo", dropout=0.0)

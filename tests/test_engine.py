"""The engine: the model's own predictions, whatever the precision, the batch and the options."""

import copy
import pickle
from functools import partial

import pytest
import tolerances
import torch
from cpu_kernels import needs_kernel
from random_models import model_with_statistics
from torch import nn

from detr_fast import Engine, build_model
from detr_fast.data.batching import nested_tensor_from_images
from detr_fast.inference import engine as engine_module
from detr_fast.inference.convolution import FusedConvolution, folded
from detr_fast.inference.engine import PRECISIONS
from detr_fast.inference.linear import FusedLinear
from detr_fast.inference.packed import PackedWeights, beginning, onednn_takes
from detr_fast.inference.token_layout import PackedTokens, PaddedTokens
from detr_fast.inference.verify import compare

MODELS = {
    "R50": ("detr_resnet50", {}),
    "DC5": ("detr_resnet50_dc5", {}),
    "pre-norm": ("detr_resnet50", {"pre_norm": True}),
    "learned positions": ("detr_resnet50", {"position_embedding": "learned"}),
    "one decoder layer": ("detr_resnet50", {"dec_layers": 1}),
    "no encoder": ("detr_resnet50", {"enc_layers": 0}),
    "basic blocks": ("detr_tiny", {}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    name, options = MODELS[request.param]
    return model_with_statistics(name, **options)


def images(*sizes):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


MIXED = ((96, 133), (130, 80))


@torch.no_grad()
def differences(model: nn.Module, engine: Engine, batch) -> tuple[float, float]:
    expected, actual = model(batch), engine(batch)
    return tuple(
        (actual[key] - expected[key]).abs().max().item() for key in ("pred_logits", "pred_boxes")
    )


@pytest.mark.parametrize("exact", [False, True], ids=["compatible", "exact"])
def test_float32_is_the_model(model, exact):
    model.exact_batches = exact
    engine = Engine(model)
    assert engine.exact_batches == exact
    for batch in (images(*MIXED), images(MIXED[0]), images(MIXED[1]), images(*MIXED)):
        logits, boxes = differences(model, engine, batch)
        assert logits <= tolerances.ENGINE_LOGITS_FLOAT32
        assert boxes <= tolerances.ENGINE_BOXES_FLOAT32


@pytest.mark.filterwarnings("ignore:this CPU has no instructions for bf16")
def test_bf16_is_near_the_model(model):
    assert compare(model, Engine(model, "bf16"), [images(*MIXED)]).faults("bf16") == []


def test_bf16_works_where_onednn_refuses_it(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    refuse = partial(pytest.fail, "oneDNN was asked")
    for name in ("_linear_pointwise", "_convolution_pointwise", "_convolution_pointwise_"):
        monkeypatch.setattr(torch.ops.mkldnn, name, refuse)
    model = model_with_statistics("detr_tiny")
    assert compare(model, Engine(model, "bf16"), [images(*MIXED)]).faults("bf16") == []


def test_fp16_is_near_the_model(fp16_on_a_cpu):
    model = model_with_statistics("detr_tiny")
    assert compare(model, Engine(model, "fp16"), [images(*MIXED)]).faults("fp16") == []


@pytest.mark.filterwarnings("ignore:this CPU has no instructions for bf16")
def test_bf16_is_not_within_the_limits_of_fp16():
    model = model_with_statistics("detr_tiny")
    assert compare(model, Engine(model, "bf16"), [images(*MIXED)]).faults("fp16") != []


@pytest.mark.filterwarnings("ignore:this CPU has no instructions for bf16")
def test_predictions_are_float32_whatever_goes_in():
    model = model_with_statistics("detr_tiny")
    for precision in ("fp32", "bf16"):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            outputs = Engine(model, precision)([image.to(dtype) for image in images(*MIXED)])
            assert set(outputs) == {"pred_logits", "pred_boxes"}
            assert all(output.dtype == torch.float32 for output in outputs.values())


def test_every_form_of_a_batch():
    model = model_with_statistics("detr_tiny")
    engine = Engine(model)
    same = images(MIXED[0], MIXED[0])
    for batch in (same, torch.stack(same), nested_tensor_from_images(images(*MIXED))):
        assert max(differences(model, engine, batch)) <= tolerances.ENGINE_BOXES_FLOAT32


def test_an_exact_image_is_the_same_in_every_batch():
    model = model_with_statistics("detr_resnet50", exact_batches=True)
    engine = Engine(model)
    batch = images(*MIXED)
    together = engine(batch)
    for b, image in enumerate(batch):
        alone = engine([image])
        for key, tolerance in (
            ("pred_logits", tolerances.EXACT_BATCH_LOGITS_FLOAT32),
            ("pred_boxes", tolerances.EXACT_BATCH_BOXES_FLOAT32),
        ):
            torch.testing.assert_close(together[key][b], alone[key][0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["detr_resnet50_dc5", "detr_tiny"])
def test_images_that_pass_the_backbone_one_by_one(name, monkeypatch):
    """Worth it from some padding on; the images are the same however they pass."""
    model = model_with_statistics(name, exact_batches=True)
    engine = Engine(model)
    passed = []
    engine.backbone.register_forward_hook(lambda _, args, __: passed.append(args[0].shape))
    canvas = (130, 133)
    padding = sum(canvas[0] * canvas[1] - height * width for height, width in MIXED)
    monkeypatch.setattr(engine_module, "_PIXELS_OF_A_PASS", padding // 2)
    together = engine(images(*MIXED))
    assert passed == [(2, 3, *canvas)]
    monkeypatch.setattr(engine_module, "_PIXELS_OF_A_PASS", padding // 2 - 1)
    alone = engine(images(*MIXED))
    assert passed[1:] == [(1, 3, *size) for size in MIXED]
    for outputs in (together, alone):
        logits, boxes = (outputs[key] for key in ("pred_logits", "pred_boxes"))
        expected = model(images(*MIXED))
        atol = tolerances.ENGINE_LOGITS_FLOAT32
        torch.testing.assert_close(logits, expected["pred_logits"], rtol=0, atol=atol)
        atol = tolerances.ENGINE_BOXES_FLOAT32
        torch.testing.assert_close(boxes, expected["pred_boxes"], rtol=0, atol=atol)


@pytest.mark.parametrize("pixels", [0, 1 << 20])
def test_an_image_may_be_padding_altogether(pixels, monkeypatch):
    monkeypatch.setattr(engine_module, "_PIXELS_OF_A_PASS", pixels)
    model = model_with_statistics("detr_tiny")
    batch = nested_tensor_from_images(images(*MIXED))
    batch.mask[0] = True
    for exact in (False, True):
        model.exact_batches = exact
        logits, boxes = differences(model, Engine(model), batch)
        assert logits <= tolerances.ENGINE_LOGITS_FLOAT32
        assert boxes <= tolerances.ENGINE_BOXES_FLOAT32


@pytest.mark.parametrize("pre_norm", [False, True])
def test_packed_tokens_are_the_padded_ones_without_the_padding(pre_norm):
    engine = Engine(model_with_statistics("detr_tiny", pre_norm=pre_norm))
    width = engine.input_proj.weight.shape[0]
    extents, grid = torch.tensor([[4, 7], [6, 2], [1, 1], [0, 0], [6, 7]]), (6, 7)
    features = torch.randn(5, width, *grid, generator=torch.Generator().manual_seed(3))
    packed, padded = PackedTokens(extents.tolist()), PaddedTokens(5, grid, extents)
    assert packed.tokens(features).shape == (1, 28 + 12 + 1 + 42, width)
    expected = engine.transformer(
        padded.tokens(features), engine._encoded(5, grid, extents), padded
    )
    actual = engine.transformer(packed.tokens(features), engine._packed_positions(packed), packed)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerances.PACKED_FLOAT32)
    first = PaddedTokens(1, (4, 7), None)
    own = features[:1, :, :4, :7]
    alone = engine.transformer(first.tokens(own), engine._encoded(1, (4, 7), None), first)
    torch.testing.assert_close(actual[:1], alone, rtol=0, atol=tolerances.PACKED_FLOAT32)


def test_the_model_is_left_as_it_was_and_not_followed():
    model = model_with_statistics("detr_tiny").double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = Engine(model)
    expected = engine(images(MIXED[0]))
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    outputs = engine(images(MIXED[0]))
    assert all(torch.equal(outputs[key], expected[key]) for key in outputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore:this CPU has no instructions for bf16")
def test_positions_of_many_sizes_are_kept_up_to_a_number_of_bytes(precision, monkeypatch):
    """Of each size one encoding for all layers, in the engine's type."""
    model = model_with_statistics("detr_tiny")
    channels = model.query_embed.embedding_dim
    grids = ((8, 8), (8, 12), (12, 8), (8, 8))
    held = [PRECISIONS[precision].itemsize * rows * columns * channels for rows, columns in grids]
    monkeypatch.setattr(engine_module, "_KEPT_POSITIONS", held[2] + held[3])
    engine = Engine(model, precision)
    for rows, columns in grids:
        engine(images((8 * rows, 8 * columns)))
    assert list(engine._positions) == [(12, 8), (8, 8)]
    assert [engine._positions.get(grid).nbytes for grid in grids[2:]] == held[2:]


def test_nothing_of_an_engine_that_moves_stays_behind(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    engine = Engine(model_with_statistics("detr_tiny"))
    (image,) = images(MIXED[0])
    expected = engine([image])
    assert engine.positions(MIXED[0]).device.type == "cpu"
    engine.to("meta")
    assert engine.positions(MIXED[0]).device.type == "meta"
    found = engine([image.to("meta")])
    assert {key: (value.device.type, value.shape) for key, value in found.items()} == {
        key: ("meta", value.shape) for key, value in expected.items()
    }


def test_a_copied_engine_is_the_same():
    engine = Engine(model_with_statistics("detr_tiny"))
    (image,) = images(MIXED[0])
    expected = engine([image])
    for copied in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        found = copied([image])
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_folding_keeps_float64():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    norm = nn.BatchNorm2d(5).double()
    for buffer in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(buffer, 0.5, 2)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    weight, bias = folded(conv, norm.eval())
    actual = nn.functional.conv2d(x, weight, bias, 2, 1)
    torch.testing.assert_close(actual, norm(conv(x)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [{"bias": True}, {"groups": 3}, {"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}],
    ids=str,
)
def test_what_cannot_be_folded_is_refused(options):
    conv = nn.Conv2d(3, 6, 3, **{"bias": False, **options})
    with pytest.raises(ValueError, match="cannot fold Conv2d"):
        folded(conv, nn.BatchNorm2d(6).eval())


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summand", [True, False])
def test_fused_convolution(onednn, relu, summand, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=2, dilation=2, bias=False)
    fused, x, other, expected = fused_convolution(conv, relu, summand)
    torch.testing.assert_close(fused(x, other), expected)


OWN_KERNELS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "1x1": {"kernel_size": 1},
    "1x1 of stride 2": {"kernel_size": 1, "stride": 2},
}


@needs_kernel
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summand", [True, False])
@pytest.mark.parametrize("kernel", OWN_KERNELS)
def test_fused_convolution_by_own_kernels(kernel, relu, summand, monkeypatch):
    conv = nn.Conv2d(16, 64, bias=False, **OWN_KERNELS[kernel])
    fused, x, other, expected = fused_convolution(conv, relu, summand)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.nn.functional, "conv2d", partial(pytest.fail, "torch's"))
    actual = fused(x, other)
    assert (actual is other) == summand
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
def fused_convolution(conv: nn.Conv2d, relu: bool, summand: bool):
    """A convolution with its norm, inputs, a summand or None, and what the modules make of them."""
    norm = nn.BatchNorm2d(conv.out_channels).eval()
    x = torch.randn(2, conv.in_channels, 9, 8).to(memory_format=torch.channels_last)
    expected = norm(conv(x))
    other = torch.randn_like(expected) if summand else None
    if summand:
        expected += other
    if relu:
        expected.relu_()
    return FusedConvolution(conv, norm, relu, torch.float32), x, other, expected


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (16, 64)])
def test_a_convolution_that_moves_forgets_its_packed_weights(inputs, outputs):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    fused = FusedConvolution(conv, nn.BatchNorm2d(outputs).eval(), True, torch.float32)
    x = torch.randn(2, inputs, 9, 8).to(memory_format=torch.channels_last)
    before = fused(x)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(copied(x), before)
    assert len(pickle.dumps(fused)) < 2 * fused.weight.nbytes + 10_000
    fused._apply(lambda tensor: 2 * tensor)
    torch.testing.assert_close(fused(x), 2 * before)


def test_weights_are_packed_for_each_size_and_kept_once_for_each_order():
    weight = torch.randn(64, 64)
    if not onednn_takes(weight):
        pytest.skip("oneDNN is not here")
    packed, same, different = (
        torch.ops.mkldnn._reorder_linear_weight(x, 1) for x in (weight, weight, weight + 1)
    )
    made = []

    def pack(weights):
        return lambda: made.append(weights) or weights

    kept = PackedWeights()
    assert kept.packed_for_size((1, 8), pack(packed)) is packed
    assert kept.packed_for_size((1, 8), pack(different)) is packed
    assert kept.packed_for_size((1, 9), pack(same)) is packed
    assert kept.packed_for_size((2, 8), pack(different)) is different
    assert kept.packed_for_size((1, 9), pack(different)) is packed
    assert [
        weights is each for weights, each in zip(made, (packed, same, different), strict=True)
    ] == [True] * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_packs_for_the_sizes_it_meets(precision, monkeypatch):
    """What oneDNN would have to reorder in every call, 20 ms for half a million weights."""
    dtype = PRECISIONS[precision]
    if not onednn_takes(torch.empty(0, dtype=dtype)):
        pytest.skip(f"oneDNN does not multiply {precision} here")
    for module in ("convolution", "linear"):
        monkeypatch.setattr(
            f"detr_fast.inference.{module}.pointwise_is_faster", lambda *arguments: False
        )
    conv = nn.Conv2d(256, 1024, 1, bias=False)
    fused = FusedConvolution(conv, nn.BatchNorm2d(1024).eval(), True, dtype)
    linear = FusedLinear.of(nn.Linear(256, 2048), dtype)
    for height, width in ((25, 34), (25, 25), (4, 4)):
        x = torch.randn(1, 256, height, width, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        fused(x)
        best = torch._C._nn.mkldnn_reorder_conv2d_weight(
            fused.weight.to_mkldnn(), conv.padding, conv.stride, conv.dilation, 1, x.shape
        )
        assert beginning(fused.packed_for_size(x.shape, pytest.fail)) == beginning(best)
    for rows in (1, 100, 850):
        linear(torch.randn(rows, 256, dtype=dtype))
        best = torch.ops.mkldnn._reorder_linear_weight(linear.weight, rows)
        assert beginning(linear.packed_for_size(rows, pytest.fail)) == beginning(best)


def check_sum(fused: FusedLinear, linear: nn.Linear, x: torch.Tensor) -> None:
    """With a summand that has memory of its own, and with one that has not."""
    alone = linear(x)
    for other in (torch.randn_like(alone), torch.randn(alone.shape[-1]).expand_as(alone)):
        expected = alone + other
        if fused.relu:
            expected = expected.relu()
        torch.testing.assert_close(fused(x, other), expected)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 5), (0, 5)])
def test_fused_linear(onednn, relu, shape, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    linear = nn.Linear(5, 3).requires_grad_(False)
    # Every second row of a larger tensor.
    x = torch.randn(2 * shape[0], *shape[1:])[::2]
    expected = linear(x).relu() if relu else linear(x)
    fused = FusedLinear.of(linear, torch.float32, relu)
    torch.testing.assert_close(fused(x), expected)
    check_sum(fused, linear, x)
    no_bias = FusedLinear(linear.weight, None, torch.float32)
    torch.testing.assert_close(no_bias(x), x @ linear.weight.T)
    fused._apply(lambda tensor: 2 * tensor)
    torch.testing.assert_close(fused(x), 2 * expected)


@needs_kernel
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 16), (1, 16), (0, 16)])
def test_fused_linear_by_own_kernel(relu, shape, monkeypatch):
    linear = nn.Linear(16, 64).requires_grad_(False)
    x = torch.randn(2 * shape[0], *shape[1:])[::2]
    expected = linear(x).relu() if relu else linear(x)
    without = x @ linear.weight.T
    fused = FusedLinear.of(linear, torch.float32, relu)
    no_bias = FusedLinear(linear.weight, None, torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    check_sum(fused, linear, x)
    monkeypatch.setattr(torch.nn.functional, "linear", partial(pytest.fail, "torch's"))
    torch.testing.assert_close(fused(x), expected)
    torch.testing.assert_close(no_bias(x), without)
    fused._apply(lambda tensor: 2 * tensor)
    torch.testing.assert_close(fused(x), 2 * expected)
    assert torch.equal(pickle.loads(pickle.dumps(fused))(x), fused(x))


def test_what_cannot_be_made_fast_is_explained(monkeypatch):
    model = model_with_statistics("detr_tiny")
    with pytest.raises(ValueError, match="made of a DETR; got a DETRDemo"):
        Engine(build_model("detr_demo"))
    with pytest.raises(ValueError, match="precision is 'int8'; expected one of 'fp32'"):
        Engine(model, "int8")
    with pytest.raises(ValueError, match="fp16 is slower than fp32 on a CPU"):
        Engine(model, "fp16")
    monkeypatch.setattr(engine_module, "cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match="no instructions for bf16"):
        Engine(model, "bf16")

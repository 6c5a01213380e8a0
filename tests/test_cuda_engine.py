"""The engine on a GPU: its graphs give what it gives without them, and nothing waits."""

import gc

import pytest
import tolerances
import torch
from random_models import model_with_statistics
from test_cuda import no_waiting
from test_engine import fused_convolution
from torch import nn

from detr_fast import Detector
from detr_fast.data.batching import nested_tensor_from_images
from detr_fast.data.build import build_loader
from detr_fast.data.normalization import Normalization
from detr_fast.data.shapes import ShapesDataset
from detr_fast.data.transforms import val_transform
from detr_fast.evaluation.coco import CocoEvaluator
from detr_fast.evaluation.evaluate import evaluate
from detr_fast.inference.engine import Engine
from detr_fast.inference.float32 import full_float32
from detr_fast.inference.images import read_image
from detr_fast.inference.inputs import Form, input_path
from detr_fast.inference.loading import Preprocess
from detr_fast.inference.verify import LIMITS, compare
from detr_fast.models.zoo import build_model

pytestmark = pytest.mark.cuda

SHORT_SIDE = 96
SIZES = ((96, 128), (96, 144), (128, 96), (96, 96), (80, 160), (90, 120), (96, 127))


def engines(
    precision: str = "fp32", exact: bool = True, name: str = "detr_resnet50", **options
) -> tuple[Engine, Engine]:
    """An engine with graphs, and one of the same model without."""
    model = model_with_statistics(name, exact_batches=exact).cuda()
    graphed = Engine(model, precision, short_side=SHORT_SIDE, **options)
    return graphed, Engine(model, precision, max_graphs=0)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(3, *size, device="cuda") for size in sizes]


def assert_same(found: dict, expected: dict, precision: str):
    """Up to another order of sums, which in 16 bits is as much as rounding."""
    if precision == "fp32":
        logits = tolerances.EXACT_BATCH_LOGITS_FLOAT32
        boxes = tolerances.EXACT_BATCH_BOXES_FLOAT32
    else:
        spread = {key: value.square().mean().sqrt().item() for key, value in expected.items()}
        # Limits are of root mean squares; six of these hold every single one of a few thousand.
        logits = 6 * LIMITS[precision]["logits_error"] * spread["pred_logits"]
        boxes = 6 * LIMITS[precision]["boxes_error"] * spread["pred_boxes"]
    torch.testing.assert_close(found["pred_logits"], expected["pred_logits"], rtol=0, atol=logits)
    torch.testing.assert_close(found["pred_boxes"], expected["pred_boxes"], rtol=0, atol=boxes)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "compatible"])
def test_graphs_give_what_the_engine_gives(exact, precision):
    graphed, plain = engines(precision, exact)
    for size in SIZES * 2:
        batch = images(size)
        assert_same(graphed(batch), plain(batch), precision)
    captures = graphed.captures
    assert captures == 4
    for sizes in ((SIZES[0], SIZES[5]), (SIZES[5], SIZES[6]), (SIZES[0], SIZES[5])):
        batch = images(*sizes)
        assert_same(graphed(batch), plain(batch), precision)
    # Exact batches share a canvas; of others only the one that came twice is captured.
    assert graphed.captures == captures + 1


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summand", [True, False])
@torch.no_grad()
def test_fused_convolution(relu, summand):
    conv = nn.Conv2d(16, 64, 3, stride=2, padding=1, bias=False)
    fused, x, other, expected = fused_convolution(conv, relu, summand)
    with full_float32():
        found = fused.cuda()(x.cuda(), None if other is None else other.cuda())
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("name", ["detr_resnet50", "detr_resnet50_dc5", "detr_tiny"])
def test_the_engine_on_a_gpu_is_the_model(name):
    model = model_with_statistics(name, exact_batches=True).cuda()
    for precision in LIMITS:
        engine = Engine(model, precision, short_side=SHORT_SIDE)
        batches = [images(size) for size in SIZES] + [images(SIZES[0], SIZES[1])]
        assert compare(model, engine, batches).faults(precision) == []


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "compatible"])
def test_replays_do_not_wait(exact):
    graphed, plain = engines("fp16", exact)
    graphed.capture(SIZES)
    graphed.capture(SIZES[:1], fitted=True)
    captures = graphed.captures
    batches = [images(size) for size in SIZES]
    expected = [plain(batch) for batch in batches]
    with no_waiting():
        found = [graphed(batch) for batch in batches]
    for mine, other in zip(found, expected, strict=True):
        assert_same(mine, other, "fp16")
    assert graphed.captures == captures


def test_the_engine_without_graphs_does_not_wait_either():
    _, plain = engines("fp16")
    batch = images(*SIZES)
    plain(batch)
    with no_waiting():
        plain(batch)


def test_what_an_earlier_batch_left_in_the_padding_is_not_seen():
    graphed, plain = engines()
    graphed([torch.full((3, 96, 128), torch.nan, device="cuda")])
    batch = images((90, 101))
    assert_same(graphed(batch), plain(batch), "fp32")
    assert graphed.captures == 1


def test_results_are_the_callers_own():
    graphed, _ = engines()
    first = graphed(images(SIZES[0]))
    kept = {key: value.clone() for key, value in first.items()}
    second = graphed(images(SIZES[0]))
    for key, value in kept.items():
        assert torch.equal(first[key], value)
        assert not torch.equal(second[key], value)


def test_graphs_are_dropped_and_captured_again_in_the_same_memory():
    graphed, plain = engines(max_graphs=2)
    for size in SIZES * 3:
        batch = images(size)
        assert_same(graphed(batch), plain(batch), "fp32")
    assert len(graphed._graphs) == 2
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for size in SIZES * 3:
        graphed(images(size))
    gc.collect()
    assert torch.cuda.memory_reserved() <= 1.2 * before


def test_graphs_share_their_memory():
    """Ten graphs hold little more than the largest of them, which is captured first."""

    def reserved(sizes: list[tuple[int, int]]) -> int:
        graphed, _ = engines("fp16")
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graphed.capture(sizes, batch_size=4)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    one = reserved([(480, 640)])
    assert reserved([(480, 64 * n) for n in range(1, 11)]) < 2 * one


def test_a_fitted_graph_reads_positions_that_are_still_there():
    graphed, plain = engines()
    graphed.capture([(96, 128)], fitted=True)
    graphed._positions.clear()
    gc.collect()
    filling = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(64)]
    batch = images((96, 128))
    assert_same(graphed(batch), plain(batch), "fp32")
    del filling


def test_another_stream_than_the_one_of_the_capture():
    graphed, plain = engines()
    graphed.capture(SIZES[:1])
    batch = images(SIZES[0])
    expected = plain(batch)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = graphed(batch)
    stream.synchronize()
    assert_same(found, expected, "fp32")


def test_an_engine_comes_to_the_gpu_and_leaves_it():
    model = model_with_statistics("detr_tiny", exact_batches=True)
    engine = Engine(model, short_side=SHORT_SIDE)
    (image,) = (image.cpu() for image in images(SIZES[0]))
    expected = engine([image])
    engine.cuda()
    found = engine([image.cuda()])
    assert engine.captures == 1
    assert_same({key: value.cpu() for key, value in found.items()}, expected, "fp32")
    assert_same(engine.cpu()([image]), expected, "fp32")
    assert engine.captures == 0


def test_detector_captures_by_itself_and_ahead():
    model = model_with_statistics("detr_tiny")
    pictures = [ShapesDataset(3, seed=7).scene(index).image for index in range(3)]
    plain = Detector(model, "cuda", precision="fp16", max_graphs=0)
    detector = Detector(model, "cuda", precision="fp16")
    detector.warm_up([(64, 64)])
    captures = detector._engine.captures
    found = detector.predict(pictures, threshold=0)
    assert (detector._engine.captures, plain._engine.captures) == (captures, 0)
    for mine, other in zip(found, plain.predict(pictures, threshold=0), strict=True):
        assert len(mine) == len(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_hold_the_values_that_the_host_gives_them(dtype):
    host, gpu = (input_path(Preprocess(96, 160), torch.device(name)) for name in ("cpu", "cuda"))
    for index in range(4):
        sources = [ShapesDataset(8, seed=3).scene(2 * index + i).image for i in (0, 1)]
        sources[1] = sources[1][: 30 + index]
        expected, found = (
            path.place(
                path.gather([path.prepare(read_image(source)) for source in sources]), Form(dtype)
            )
            for path in (host, gpu)
        )
        batch = nested_tensor_from_images(expected.samples)
        assert torch.equal(found.samples.tensors.cpu(), batch.tensors)
        assert torch.equal(found.samples.mask.cpu(), batch.mask)


def test_a_batch_under_way_is_not_written_over():
    path = input_path(Preprocess(None, None), torch.device("cuda"))
    levels = range(1, 9)
    images = [torch.full((3, 512, 512), level, dtype=torch.uint8) for level in levels]
    path.place(path.gather(images[:1]), Form(torch.float32))
    with no_waiting():
        torch.cuda._sleep(200_000_000)
        found = [path.place(path.gather([image]), Form(torch.float32)).samples for image in images]
    for image, batch in zip(images, found, strict=True):
        assert torch.equal(batch.cpu(), Normalization("cpu")(image[None]))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_shipped_weights_hold(precision):
    """The same AP within 0.001, and the same objects in 99 of 100 pictures."""
    model = build_model("detr_tiny", pretrained=True).eval().cuda()
    engine = Engine(model, precision, short_side=None)
    shapes = ShapesDataset(300, seed=5, transform=val_transform(None, None))

    def average_precision(network: torch.nn.Module) -> float:
        evaluator = CocoEvaluator(shapes.ground_truth(), shapes.label_map)
        return evaluate(network, build_loader(shapes, 16), evaluator, device="cuda")["AP"]

    expected = average_precision(model)
    assert average_precision(engine) == pytest.approx(expected, abs=tolerances.ENGINE_AP)
    batches = (batch.tensors.cuda() for batch, _ in build_loader(shapes, 16))
    assert compare(model, engine, batches, threshold=0.7).faults(precision) == []

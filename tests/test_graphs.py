"""What surrounds the capture of a CUDA graph: which graph a batch takes, when one is captured, when
dropped, what goes in and what comes out. Capturing itself is a stand-in here, and is left to
tests/test_cuda_engine.py.
"""

import copy
import json
import random

import pytest
import tolerances
import torch
from random_models import model_with_statistics
from torch import Tensor

from detr_fast import Detector
from detr_fast.data.transforms import resized_size
from detr_fast.inference.engine import Engine
from detr_fast.inference.graphs import Graphs, Shape
from detr_fast.inference.loading import Preprocess

SHORT_SIDE = 64
KEYS = {
    "pred_logits": tolerances.EXACT_BATCH_LOGITS_FLOAT32,
    "pred_boxes": tolerances.EXACT_BATCH_BOXES_FLOAT32,
}


class Recorded:
    """Captures like CUDA: nothing is computed until a replay, which reads and writes the tensors
    that it has always read and written."""

    def __call__(self, run):
        outputs = {name: torch.full_like(value, torch.nan) for name, value in run().items()}

        def replay():
            for name, value in run().items():
                outputs[name].copy_(value)
            return outputs

        return replay


def graphs_on_a_cpu(limit: int = 25, short_side: int | None = SHORT_SIDE, new_capture=Recorded):
    return Graphs(limit, short_side, torch.float32, torch.device("cpu"), new_capture)


def engines(exact: bool = False, **options) -> tuple[Engine, Engine]:
    """An engine with graphs, and one of the same model without."""
    model = model_with_statistics("detr_tiny", exact_batches=exact)
    graphed, plain = Engine(model), Engine(model)
    graphed._graphs = graphs_on_a_cpu(**options)
    return graphed, plain


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(3, *size) for size in sizes]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]):
    assert found.keys() == expected.keys() == KEYS.keys()
    for key, tolerance in KEYS.items():
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=tolerance)


def shapes(engine: Engine) -> list[Shape]:
    return list(engine._graphs._graphs)


@pytest.mark.parametrize("exact", [False, True], ids=["compatible", "exact"])
def test_batches_without_padding_share_the_graph_of_their_canvas(exact):
    graphed, plain = engines(exact)
    for size in ((64, 90), (64, 64), (60, 70), (64, 96), (61, 81), (90, 64)):
        batch = images(size, size)
        assert_same(graphed(batch), plain(batch))
        assert_same(graphed(torch.stack(batch)), plain(batch))
    canvases = ((64, 64), (64, 96), (96, 64))
    assert sorted(shapes(graphed)) == [Shape(2, canvas, True, True) for canvas in canvases]
    assert graphed.captures == 3


def test_padded_batches_share_it_too_where_they_are_exact():
    graphed, plain = engines(exact=True)
    for sizes in (((64, 90), (50, 64)), ((33, 66), (64, 20)), ((64, 94), (64, 94))):
        batch = images(*sizes)
        assert_same(graphed(batch), plain(batch))
    assert shapes(graphed) == [Shape(2, (64, 96), True, True)]


def test_a_batch_padded_as_in_the_original_keeps_its_canvas_and_is_captured_when_it_comes_again():
    graphed, plain = engines(exact=False)
    for sizes, captures in (
        (((64, 90), (50, 64)), 0),
        (((64, 50), (50, 91)), 0),
        (((33, 90), (64, 20)), 1),
        (((40, 91), (64, 20)), 2),
        (((64, 90), (50, 64)), 2),
    ):
        batch = images(*sizes)
        assert_same(graphed(batch), plain(batch))
        assert graphed.captures == captures
    assert set(shapes(graphed)) == {
        Shape(2, (64, width), padded=True, exact=False) for width in (90, 91)
    }


def test_the_switch_between_exact_and_compatible_may_be_turned_later():
    graphed, plain = engines(exact=False)
    batch = images((64, 90), (50, 64))
    for exact in (False, True, False, True):
        graphed.exact_batches = plain.exact_batches = exact
        assert_same(graphed(batch), plain(batch))
    assert {shape.exact for shape in shapes(graphed)} == {False, True}


def test_what_an_earlier_batch_left_in_the_padding_is_not_seen():
    graphed, plain = engines()
    graphed(images((64, 96)))
    for remains in (torch.nan, torch.inf, 1e6):
        graphed([torch.full((3, 64, 96), remains)])
        batch = images((51, 70))
        assert_same(graphed(batch), plain(batch))
    assert graphed.captures == 1


def test_results_are_the_callers_own():
    graphed, _ = engines()
    first = graphed(images((64, 90)))
    kept = {key: value.clone() for key, value in first.items()}
    second = graphed(images((64, 90)))
    for key, value in kept.items():
        assert torch.equal(first[key], value)
        assert not torch.equal(second[key], value)


def test_images_of_any_floating_type_and_layout_go_in():
    graphed, plain = engines()
    (image,) = images((64, 90))
    expected = plain([image])
    strided = image.flip(-1).flip(-1).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for given in (image.double(), strided):
        assert_same(graphed([given]), expected)


def test_the_graph_that_was_not_used_for_longest_is_dropped():
    graphed, plain = engines(limit=2)
    wide, tall, square = (images(size) for size in ((64, 90), (90, 64), (64, 64)))
    for batch in (wide, tall, wide, square, wide, tall):
        assert_same(graphed(batch), plain(batch))
    assert graphed.captures == 4  # the tall one twice
    assert [shape.canvas for shape in shapes(graphed)] == [(64, 96), (96, 64)]


def test_all_graphs_share_the_memory_of_one_capture():
    made = []

    def new_capture():
        made.append(Recorded())
        return made[-1]

    graphed, _ = engines(limit=1, new_capture=new_capture)
    for size in ((64, 90), (90, 64), (64, 64)):
        graphed(images(size))
    assert (graphed.captures, len(made)) == (3, 1)


def test_a_capture_that_failed_is_tried_again_with_memory_of_its_own():
    made = []

    class Failing(Recorded):
        def __call__(self, run):
            made.append(self)
            if len(made) == 1:
                raise RuntimeError("out of memory")
            return super().__call__(run)

    graphed, plain = engines(new_capture=Failing)
    batch = images((64, 90))
    with pytest.raises(RuntimeError, match="out of memory"):
        graphed(batch)
    assert_same(graphed(batch), plain(batch))
    assert made[0] is not made[1]


def test_graphs_captured_ahead_serve_all_that_fits():
    graphed, plain = engines()
    graphed.capture([(64, 90), (64, 70), (50, 64)])
    assert graphed.captures == 2
    graphed.capture([(64, 96)])
    assert graphed.captures == 2
    for size in ((64, 81), (64, 64), (60, 90)):
        batch = images(size)
        assert_same(graphed(batch), plain(batch))
    assert graphed.captures == 2
    graphed.capture([(64, 90)], batch_size=3)
    assert shapes(graphed)[-1] == Shape(3, (64, 96), True, True)


def test_inputs_of_graphs_captured_ahead_begin_at_the_same_memory():
    graphed, _ = engines()
    graphed.capture([(64, 64), (64, 128), (64, 90)])
    graphs = [graphed._graphs._graphs.get(shape) for shape in shapes(graphed)]
    assert len({graph.images.data_ptr() for graph in graphs}) == 1


def test_fitted_graphs_serve_batches_of_just_their_size():
    graphed, plain = engines(exact=True)
    graphed.capture([[64, 90]], batch_size=2, fitted=True)
    fitted = Shape(2, (64, 90), padded=False, exact=True)
    assert shapes(graphed) == [fitted]
    batch = images((64, 90), (64, 90))
    assert_same(graphed(batch), plain(batch))
    assert graphed.captures == 1
    for sizes in (((64, 89), (64, 89)), ((64, 90), (50, 64))):
        batch = images(*sizes)
        assert_same(graphed(batch), plain(batch))
    assert shapes(graphed) == [fitted, Shape(2, (64, 96), True, True)]


def test_a_fitted_graph_holds_the_positions_that_it_reads():
    graphed, plain = engines()
    graphed.capture([(64, 90)], fitted=True)
    (held,) = (graphed._graphs._graphs.get(shape).positions for shape in shapes(graphed))
    assert held is graphed.positions((64, 90))
    graphed._positions.clear()
    batch = images((64, 90))
    assert_same(graphed(batch), plain(batch))


def test_more_graphs_than_are_kept_are_refused():
    graphed, _ = engines(limit=2)
    with pytest.raises(ValueError, match="need 3 graphs, and max_graphs is 2"):
        graphed.capture([(64, 64), (64, 90), (90, 64)])
    assert graphed.captures == 0


class AnyNetwork:
    """Takes every shape and computes nothing."""

    exact_batches = True

    def run(self, images, extents, positions, exact):
        return {"pred_logits": images.new_empty(len(images), 100, 92)}

    def positions(self, canvas):
        return torch.empty(0)


def test_mixed_sizes_of_coco_need_no_capture_after_warming_up(shared_data):
    """At most 25 graphs for all of them; 200 images after, none is captured or dropped."""
    listed = json.loads((shared_data / "val2017_sizes.json").read_text())
    sizes = [
        resized_size(height, width, 800, 1333)
        for _, height, width in listed["first"] + listed["more"]
    ]
    graphs = Graphs(25, 800, torch.float16, torch.device("meta"), Recorded)
    network = AnyNetwork()
    graphs.capture(network, 1, sizes, fitted=False)
    ahead = graphs.captures
    assert ahead == len(graphs) <= 25
    mixed = random.Random(0).choices(sizes, k=200)
    assert len(set(mixed)) > 25
    for size in mixed:
        outputs = graphs.run(network, torch.empty(1, 3, *size, device="meta"), None)
        assert outputs["pred_logits"].shape == (1, 100, 92)
    assert graphs.captures == len(graphs) == ahead


def test_detector_warms_up_for_the_sizes_that_images_get():
    model = model_with_statistics("detr_tiny")
    pictures = [(torch.rand(3, *size) * 255).byte() for size in ((45, 60), (40, 60), (60, 60))]
    preprocess = Preprocess(short_side=SHORT_SIDE, max_size=100)
    plain = Detector(model, "cpu", preprocess=preprocess)
    detector = Detector(model, "cpu", precision="fp32", preprocess=preprocess)
    detector.warm_up([(45, 60)])  # on a CPU there is nothing to do
    assert detector._engine.captures == 0
    detector._engine._graphs = graphs_on_a_cpu()
    detector.warm_up([picture.shape[1:] for picture in pictures])
    assert sorted(shape.canvas for shape in shapes(detector._engine)) == [(64, 64), (64, 96)]
    for found, expected in zip(
        detector.predict(pictures, threshold=0), plain.predict(pictures, threshold=0), strict=True
    ):
        assert found.class_ids.tolist() == expected.class_ids.tolist()
    assert detector._engine.captures == 2
    with pytest.raises(ValueError, match="no engine to warm up; give it a precision"):
        plain.warm_up([(45, 60)])


def test_an_engine_on_a_cpu_has_no_graphs():
    engine = Engine(model_with_statistics("detr_tiny"))
    engine.capture([(64, 64)])
    engine(images((64, 64)))
    assert engine.captures == 0
    with pytest.raises(ValueError, match="max_graphs is -1; expected 0 or more"):
        Engine(model_with_statistics("detr_tiny"), max_graphs=-1)


def test_a_copied_engine_captures_its_own():
    graphed, plain = engines()
    batch = images((64, 90))
    graphed(batch)
    copied = copy.deepcopy(graphed)
    with torch.no_grad():
        for buffer in graphed.buffers():
            buffer.zero_()
    assert copied.captures == 0
    assert_same(copied(batch), plain(batch))


def test_images_elsewhere_than_the_engine_are_refused():
    for engine in engines():
        with pytest.raises(ValueError, match="the images are on meta and the engine on cpu"):
            engine(torch.empty(1, 3, 64, 64, device="meta"))

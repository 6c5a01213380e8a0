"""Inference on a GPU that is imagined: what a CUDA graph holds of the engine, and what the host
reads of the rest."""

import pytest
import torch
from imagined_gpu import GPU, ImaginedGpu, imagined_gpu
from random_models import model_with_statistics
from torch import nn

from detr_fast import Detector, build_model
from detr_fast.data.label_map import COCO_PANOPTIC_LABEL_MAP
from detr_fast.inference.convolution import FusedConvolution
from detr_fast.inference.engine import PRECISIONS, Engine
from detr_fast.inference.images import read_image
from detr_fast.inference.inputs import Form, input_path
from detr_fast.inference.loading import Preprocess
from detr_fast.inference.panoptic import PostProcessMasks, PostProcessPanoptic, confident_queries
from detr_fast.inference.postprocess import PostProcess

SHORT_SIDE = 64
SIZES = ((64, 90), (50, 70))
# And their numbers of queries.
MODELS = {"detr_resnet50": 100, "detr_resnet101_dc5": 100, "detr_tiny": 16}


class Capture:
    """Refuses what a CUDA graph cannot hold; a replay gives the tensors of the capture."""

    def __init__(self, gpu: ImaginedGpu):
        self._gpu = gpu

    def __call__(self, run):
        run()
        uploads = len(self._gpu.uploads)
        with self._gpu.no_waiting():
            outputs = run()
        assert len(self._gpu.uploads) == uploads, "a graph would copy from memory of the host"
        return lambda: outputs


def engine_of(gpu: ImaginedGpu, name: str, precision: str, exact: bool, graphs: bool) -> Engine:
    model = model_with_statistics(name, exact_batches=exact)
    engine = Engine(model, precision, "cuda", short_side=SHORT_SIDE, max_graphs=25 if graphs else 0)
    if graphs:
        engine._graphs._new_capture = lambda: Capture(gpu)
    return engine


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(3, *size, device="cuda") for size in sizes]


def batches() -> list:
    """Mixed sizes, one size, one image as a tensor."""
    return [images(*SIZES), images(*SIZES[:1] * 2), images(*SIZES[:1])[0][None]]


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("exact", [False, True], ids=["compatible", "exact"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_the_engine(name, precision, exact, graphs):
    with imagined_gpu() as gpu:
        engine = engine_of(gpu, name, precision, exact, graphs)
        for batch in batches():
            engine(batch)  # tables and graphs
            engine(batch)
            uploads = len(gpu.uploads)
            with gpu.no_waiting():
                found = engine(batch)
            assert len(gpu.uploads) == uploads
            for value in found.values():
                assert (value.device, value.dtype) == (GPU, torch.float32)
            assert found["pred_boxes"].shape == (len(batch), MODELS[name], 4)
        calls = {call for call, _ in gpu.calls}
        assert {"aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu"} <= calls
        assert ("detr_fast::zero_outside_" in calls) == (exact or graphs)
        attended = {given[0][1] for call, given in gpu.calls if call == "detr_fast::attention"}
        assert attended == {PRECISIONS[precision]}
        assert not graphs or engine.captures == (2 if exact else 3)


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize(("precision", "rounds"), [("fp32", False), ("fp16", True)])
def test_fp32_is_all_of_float32(precision, rounds, graphs, monkeypatch):
    seen = []
    fused = torch.ops.aten.cudnn_convolution_relu

    def noted(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return fused(*arguments)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", noted)
    with imagined_gpu() as gpu:
        engine = engine_of(gpu, "detr_tiny", precision, exact=False, graphs=graphs)
        engine.capture([(64, 64)])
        engine(images((64, 90), (50, 70)))
    assert set(seen) == {rounds}
    assert torch.backends.cudnn.allow_tf32


def test_the_engine_of_a_model_on_the_gpu_and_one_that_comes_and_goes():
    with imagined_gpu() as gpu:
        model = model_with_statistics("detr_tiny").to("cuda")
        engine = Engine(model, "fp16", short_side=SHORT_SIDE)
        engine._graphs._new_capture = lambda: Capture(gpu)
        engine.capture([(64, 90), (64, 64)])
        engine.capture([(64, 90)], batch_size=2, fitted=True)
        assert engine.captures == 3
        with gpu.no_waiting():
            engine(images((64, 80)))
            engine(images((64, 90), (64, 90)))
        assert engine.captures == 3
        with pytest.raises(ValueError, match="the images are on cpu and the engine on cuda:0"):
            engine(torch.randn(1, 3, 64, 64))
        moved = Engine(model_with_statistics("detr_tiny"))
        expected = moved([torch.zeros(3, 64, 64)])["pred_boxes"]
        assert moved.to("cuda")._graphs is not None
        assert (expected.device.type, moved.input_proj.weight.device) == ("cpu", GPU)


@pytest.mark.parametrize("sizes_on", ["cpu", "cuda"])
def test_post_processing_does_not_wait(sizes_on):
    with imagined_gpu() as gpu:
        outputs = {
            "pred_logits": torch.randn(2, 100, 92, device="cuda").half(),
            "pred_boxes": torch.rand(2, 100, 4, device="cuda"),
        }
        sizes = torch.tensor(SIZES).to(sizes_on)
        with gpu.no_waiting():
            found = PostProcess()(outputs, sizes)
        assert all(value.device == GPU for image in found for value in image.values())


def test_post_processing_of_outputs_on_the_host_waits_for_sizes_that_are_not():
    with imagined_gpu() as gpu:
        sizes = torch.tensor(SIZES).to("cuda")
        gpu.waited()
        outputs = {"pred_logits": torch.randn(2, 100, 92), "pred_boxes": torch.rand(2, 100, 4)}
        PostProcess()(outputs, sizes)
        assert len(gpu.waited()) == 1
        assert gpu.unfinished == []


PICTURES = [(torch.rand(3, *size) * 255).byte() for size in ((48, 60), (60, 48), (48, 60))]


# Of the pictures, by the size of a batch and whether it is an exact one, then of like shapes.
UPLOADED = {
    (1, False): [(1, 64, 80, 3), (1, 80, 64, 3), (1, 64, 80, 3)],
    (1, True): [(1, 64, 80, 3), (1, 80, 64, 3), (1, 64, 80, 3)],
    (2, False): [(2, 80, 80, 3), (1, 64, 80, 3)],
    (2, True): [(2, 64, 80, 3), (1, 80, 64, 3)],
}


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("exact", [False, True], ids=["compatible", "exact"])
def test_the_detector(exact, batch_size, precision):
    with imagined_gpu() as gpu:
        detector = Detector(
            build_model("detr_tiny"),
            "cuda",
            precision=precision,
            exact_batches=exact,
            preprocess=Preprocess(SHORT_SIDE, 100),
        )
        if precision is not None:
            detector._engine._graphs._new_capture = lambda: Capture(gpu)
            detector.warm_up([(48, 60)], batch_size)
            gpu.reads = 1  # a relative error divides by it
            assert detector.verify(PICTURES, batch_size=batch_size).images == 3
            gpu.reads = 0
        detector.predict(PICTURES, threshold=0, batch_size=batch_size)  # captures what comes again
        gpu.waited()
        uploads = len(gpu.page_locked)
        found = detector.predict(PICTURES, threshold=0, batch_size=batch_size)
        # The only waits, once a batch; what it reads it copies into memory of the host.
        waits = gpu.waited()
        assert len(waits) == -(-len(PICTURES) // batch_size), "not one read for each batch"
        assert all(wait.endswith("to the host") for wait in waits)
        canvases = UPLOADED[batch_size, exact]
        assert gpu.page_locked[uploads:] == [(shape, torch.uint8) for shape in canvases]
        assert [len(each) for each in found] == [MODELS["detr_tiny"]] * 3
        assert len(detector.predict(PICTURES[0], threshold=1)) == 0


@pytest.mark.parametrize("floats", [False, True], ids=["8 bits", "floats"])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)],
)
def test_batches_are_uploaded_and_normalised_without_waiting(dtype, layout, floats):
    with imagined_gpu() as gpu:
        path = input_path(Preprocess(SHORT_SIDE, 100), GPU)
        gpu.waited()
        for pictures, sizes in (
            (PICTURES, [(64, 80), (80, 64), (64, 80)]),
            (PICTURES[:1], [(64, 80)]),
        ):
            sources = [picture / 255 if floats else picture for picture in pictures]
            gpu.page_locked.clear()
            with gpu.no_waiting():
                gathered = path.gather([path.prepare(read_image(source)) for source in sources])
                batch = path.place(gathered, Form(dtype, layout))
            assert batch.sizes == sizes
            shape = (len(sizes), *batch.canvas, 3)
            assert gpu.page_locked == [(shape, torch.float32 if floats else torch.uint8)]
            images = batch.samples
            if len(pictures) > 1:
                assert (images.mask.device, images.mask.dtype) == (GPU, torch.bool)
                images = images.tensors
            assert (images.device, images.dtype) == (GPU, dtype)
            assert tuple(images.shape) == (len(sizes), 3, *batch.canvas)
            assert images.is_contiguous(memory_format=layout)


def test_the_detector_shows_its_attention():
    with imagined_gpu():
        maps = Detector(build_model("detr_tiny"), "cuda").attention(PICTURES[0], threshold=0)
        assert len(maps.weights) == MODELS["detr_tiny"]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("reads", [0, 1])
def test_the_detector_of_masks(reads, batch_size):
    with imagined_gpu() as gpu:
        gpu.reads = reads
        detector = Detector(
            build_model("detr_tiny_panoptic", num_queries=5),
            "cuda",
            preprocess=Preprocess(SHORT_SIDE, 100),
        )
        gpu.waited()
        found = detector.predict(PICTURES, threshold=0, batch_size=batch_size)
        # Of a batch: which queries get masks, what they are, and the maps; of an image, its masks.
        waits = gpu.waited()
        assert len(waits) == 3 * -(-len(PICTURES) // batch_size) + len(PICTURES)
        assert all(wait.endswith("to the host") for wait in waits)
        assert [each.masks.shape for each in found] == [
            (5, *picture.shape[1:]) for picture in PICTURES
        ]
        assert all(each.panoptic.ids.shape == each.image_size for each in found)


@pytest.mark.parametrize(
    ("relu", "operation"),
    [(True, "aten::cudnn_convolution_add_relu"), (False, "aten::add_.Tensor")],
)
def test_a_convolution_adds_whether_or_not_a_relu_follows(relu, operation):
    conv, norm = nn.Conv2d(16, 64, 3, bias=False), nn.BatchNorm2d(64)
    with imagined_gpu() as gpu, torch.no_grad():
        fused = FusedConvolution(conv, norm, relu, torch.float32).to("cuda")
        x, other = (
            torch.randn(1, *shape, device="cuda").contiguous(memory_format=torch.channels_last)
            for shape in ((16, 9, 9), (64, 7, 7))
        )
        assert fused(x, other).shape == other.shape
        assert operation in {call for call, _ in gpu.calls}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("reads", [0, 100])
@pytest.mark.parametrize("selected", [False, True])
def test_panoptic_post_processing_waits_once_a_batch(selected, reads, merge):
    with imagined_gpu() as gpu:
        gpu.reads = reads
        masks = torch.randn(2, 6, 16, 23, device="cuda")
        outputs = {"pred_logits": torch.randn(2, 6, 251, device="cuda")}
        if selected:
            outputs["selected_masks"] = list(masks)
            outputs["selected_queries"] = [torch.zeros(6, dtype=torch.int64, device="cuda")] * 2
        else:
            outputs["pred_masks"] = masks
        decode = PostProcessPanoptic(COCO_PANOPTIC_LABEL_MAP, merge_stuff=merge)
        gpu.waited()
        maps = decode(outputs, (64, 90), SIZES, [(48, 60), (100, 120)])
        (wait,) = gpu.waited()
        assert wait.endswith("to the host")
        assert [each.ids.shape for each in maps] == [(48, 60), (100, 120)]
        assert len(confident_queries(outputs)) == 2
        assert len(gpu.waited()) == 1
        own = PostProcessMasks()(list(masks), (64, 90), SIZES, [(48, 60), (100, 120)])
        assert gpu.waited() == []
        assert [each.shape for each in own] == [(6, 48, 60), (6, 100, 120)]

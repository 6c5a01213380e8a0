"""What a GPU is given is what a CPU is given: the values, the padding and the answers."""

import numpy as np
import pytest
import torch
from random_models import model_with_statistics

from detr_fast import Detector
from detr_fast.data.batching import NestedTensor, nested_tensor_from_images
from detr_fast.inference.images import read_image
from detr_fast.inference.inputs import Form, NormalisedInputs, UploadedInputs, input_path
from detr_fast.inference.loading import Preprocess

CPU = torch.device("cpu")
PREPROCESS = Preprocess(48, 70)
SIZES = {
    "padded": [(40, 60), (60, 40), (30, 31)],
    "equal": [(40, 60), (40, 60)],
    "alone": [(50, 20)],
}


def pictures(sizes, floats=()):
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [image / np.float32(255) if i in floats else image for i, image in enumerate(made)]


def placed(path, sources, form):
    gathered = path.gather([path.prepare(read_image(source)) for source in sources])
    return path.place(gathered, form)


@pytest.mark.parametrize("floats", [(), (0,), (0, 1, 2)], ids=["8 bits", "mixed", "floats"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("preprocess", [PREPROCESS, Preprocess(None, None)])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_both_ways_give_the_same_batch(sizes, preprocess, layout, dtype, floats):
    sources = pictures(sizes, floats)
    expected = placed(NormalisedInputs(preprocess, CPU), sources, Form(dtype))
    found = placed(UploadedInputs(preprocess, CPU), sources, Form(dtype, layout))
    assert (found.sizes, found.canvas) == (expected.sizes, expected.canvas)
    batch = nested_tensor_from_images(expected.samples)
    images = found.samples
    if len(set(found.sizes)) > 1:
        assert isinstance(images, NestedTensor)
        assert torch.equal(images.mask, batch.mask)
        images = images.tensors
    assert torch.equal(images, batch.tensors)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=layout)


def test_what_is_gathered_are_bytes():
    path = UploadedInputs(PREPROCESS, CPU)
    images = [path.prepare(read_image(source)) for source in pictures(SIZES["padded"])]
    pixels, sizes = path.gather(images)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 70, 70, 3))
    assert sizes == [(47, 70), (70, 47), (48, 49)]
    assert pixels.is_contiguous()


def test_the_way_follows_the_device():
    assert isinstance(input_path(PREPROCESS, CPU), NormalisedInputs)


@pytest.mark.parametrize("precision", [None, "fp32"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["detr_tiny", "detr_tiny_panoptic"])
def test_both_ways_give_the_same_answers(name, exact, precision):
    if exact or precision is not None:
        name = "detr_tiny"  # masks have neither
    detectors = [
        Detector(
            model_with_statistics(name),
            "cpu",
            exact_batches=exact,
            precision=precision,
            preprocess=PREPROCESS,
        )
        for _ in range(2)
    ]
    detectors[1]._inputs = UploadedInputs(PREPROCESS, CPU)
    sources = pictures(SIZES["padded"] + SIZES["equal"], floats=(3,))
    for batch_size in (1, 3):
        one, other = (
            detector.predict(sources, threshold=0, batch_size=batch_size) for detector in detectors
        )
        for expected, found in zip(one, other, strict=True):
            assert np.array_equal(expected.boxes_xyxy, found.boxes_xyxy)
            assert np.array_equal(expected.scores, found.scores)
            if expected.masks is not None:
                assert np.array_equal(expected.masks, found.masks)
                assert np.array_equal(expected.panoptic.ids, found.panoptic.ids)

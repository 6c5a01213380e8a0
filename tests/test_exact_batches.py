"""Exact batches: every image of a padded batch gets what it gets alone."""

import pytest
import tolerances
import torch
from random_models import model_with_statistics
from torch import nn

from detr_fast import Detector, build_model
from detr_fast.data.batching import NestedTensor, nested_tensor_from_images
from detr_fast.data.build import build_loader
from detr_fast.data.shapes import ShapesDataset
from detr_fast.data.transforms import val_transform
from detr_fast.evaluation.coco import CocoEvaluator
from detr_fast.evaluation.evaluate import evaluate
from detr_fast.inference.loading import Preprocess
from detr_fast.models.backbone import Backbone
from detr_fast.models.padded_resnet import padded_resnet
from detr_fast.models.padding import image_extents, nearest, strided

# Of these the nearest-resized mask keeps rows or columns that an image alone does not have, or
# lacks some that it has, at stride 32 or 16.
SIZES = ((192, 267), (267, 200), (160, 301), (64, 97))
FAST = ("detr_resnet50", "detr_resnet50_dc5")
SLOW = ("detr_resnet101", "detr_resnet101_dc5")


@pytest.fixture(
    scope="module", params=[*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def model(request):
    return model_with_statistics(request.param)


def images(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(3, *size, generator=generator, dtype=torch.float64).to(dtype) for size in SIZES
    ]


@torch.no_grad()
def largest_differences(model: nn.Module, batch: list) -> dict[bool, tuple[float, float]]:
    """Between a batch and its images one by one, of logits and of boxes, exact or not."""
    alone = [model([image]) for image in batch]
    differences = {}
    for exact in (True, False):
        model.exact_batches = exact
        together = model(batch)
        differences[exact] = tuple(
            max(
                (together[key][b] - outputs[key][0]).abs().max().item()
                for b, outputs in enumerate(alone)
            )
            for key in ("pred_logits", "pred_boxes")
        )
    return differences


def test_float64(model):
    differences = largest_differences(model.double(), images())
    assert max(differences[True]) <= tolerances.EXACT_BATCH_FLOAT64
    # The original's rule does differ here, so that the line above can fail.
    assert max(differences[False]) > 1e-3


def test_float32(model):
    logits, boxes = largest_differences(model.float(), images(torch.float32)[2:])[True]
    assert logits <= tolerances.EXACT_BATCH_LOGITS_FLOAT32
    assert boxes <= tolerances.EXACT_BATCH_BOXES_FLOAT32


def test_the_sizes_are_ones_where_the_nearest_mask_is_wrong():
    extents, canvas = torch.tensor(SIZES), (267, 301)
    backbone = Backbone("resnet50")
    for stride in (32, 16):
        grid = tuple(-(-n // stride) for n in canvas)
        with torch.device("meta"):
            assert backbone.to("meta")(torch.empty(1, 3, *canvas)).shape[2:] == (9, 10)
        assert not torch.equal(nearest(extents, canvas, grid), strided(extents, stride))


@pytest.mark.parametrize("options", [{"pre_norm": True}, {"position_embedding": "learned"}])
def test_other_transformers(options):
    model = model_with_statistics("detr_resnet50", **options).double()
    differences = largest_differences(model, images()[2:])
    assert max(differences[True]) <= tolerances.EXACT_BATCH_FLOAT64


def test_basic_blocks():
    model = model_with_statistics("detr_tiny").double()
    first, second, *_ = images()
    differences = largest_differences(model, [first[:, :61, :53], second[:, :40, :66]])
    assert max(differences[True]) <= tolerances.EXACT_BATCH_FLOAT64
    assert max(differences[False]) > 1e-3


def test_the_padding_may_hold_anything(model):
    model.double()
    model.exact_batches = True
    clean = nested_tensor_from_images(images()[2:])
    filled = torch.where(clean.mask[:, None], 1e3, clean.tensors)
    with torch.no_grad():
        expected = model(clean)["pred_logits"]
        assert torch.equal(model(NestedTensor(filled, clean.mask))["pred_logits"], expected)


def test_a_batch_without_padding_takes_the_usual_path(model):
    model.float()
    batch = torch.stack([image[:, :64, :97] for image in images(torch.float32)[2:]])
    with torch.no_grad():
        model.exact_batches = True
        exact = model(batch)["pred_logits"]
        model.exact_batches = False
        assert torch.equal(model(batch)["pred_logits"], exact)


def test_features_without_padding_are_those_of_torchvision():
    backbone = model_with_statistics("detr_resnet50").backbone[0]
    image = images(torch.float32)[3][None]
    with torch.no_grad():
        features, extents = padded_resnet(backbone.body, image, torch.tensor([SIZES[3]]))
        assert torch.equal(features, backbone(image))
    assert extents.tolist() == [[2, 4]]


def test_gradients_are_the_mean_of_those_of_single_images():
    """Training: the gradient of a batch is that of its images, added up."""
    model = model_with_statistics("detr_resnet50", exact_batches=True).double()
    small = [image[:, ::2, ::2] for image in images()[:2]]

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            model(batch)["pred_logits"].square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together = gradients([small])
    alone = gradients([[image] for image in small])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
    model.exact_batches = False
    padded = gradients([small])
    assert any(
        (a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(padded, alone, strict=True)
    )


def test_nothing_is_read_back_for_the_extents():
    mask = nested_tensor_from_images(images()).mask
    assert image_extents(mask).tolist() == [list(size) for size in SIZES]
    assert image_extents(mask.to("meta")).shape == (4, 2)


def test_detector_gives_an_image_the_same_in_every_batch():
    model = model_with_statistics("detr_tiny").double()
    arrays = [
        (image.permute(1, 2, 0).sigmoid() * 255).byte().numpy()[:60, :50] for image in images()
    ]
    arrays[1] = arrays[1][:31, :47]
    detector = Detector(
        model, "cpu", exact_batches=True, preprocess=Preprocess(short_side=None, max_size=None)
    )
    together = detector.predict(arrays, threshold=0, batch_size=4)
    for found, array in zip(together, arrays, strict=True):
        alone = detector.predict(array, threshold=0)
        assert found.class_ids.tolist() == alone.class_ids.tolist()
        torch.testing.assert_close(
            torch.from_numpy(found.boxes_xyxy), torch.from_numpy(alone.boxes_xyxy)
        )


def test_detector_of_a_model_without_the_switch():
    with pytest.raises(ValueError, match="Identity has no exact_batches"):
        Detector(nn.Identity(), "cpu", exact_batches=True)


def test_average_precision_does_not_depend_on_the_batch_size():
    model = build_model("detr_tiny", pretrained=True).eval()
    shapes = ShapesDataset(24, side=(40, 64), transform=val_transform(None, None))

    def average_precision(batch_size: int, exact: bool) -> float:
        model.exact_batches = exact
        evaluator = CocoEvaluator(shapes.ground_truth(), shapes.label_map)
        return evaluate(model, build_loader(shapes, batch_size), evaluator)["AP"]

    alone = average_precision(1, exact=True)
    assert alone == average_precision(1, exact=False)
    assert average_precision(8, exact=True) == pytest.approx(alone, abs=tolerances.EXACT_BATCH_AP)
    assert abs(average_precision(8, exact=False) - alone) > 0.01


@pytest.mark.parametrize("exact", [True, False])
def test_dilated_models_are_warned_about_only_where_batches_are_not_exact(exact, capsys):
    model = build_model("detr_resnet50_dc5", num_classes=6, exact_batches=exact)
    shapes = ShapesDataset(2, transform=val_transform(None, None))
    evaluator = CocoEvaluator(shapes.ground_truth(), shapes.label_map)
    evaluate(model, build_loader(shapes, 2), evaluator)
    assert ("DC5" not in capsys.readouterr().err) == exact


def test_the_switch_is_an_option_and_comes_back_with_the_model():
    with torch.device("meta"):
        model = build_model("detr_resnet50", exact_batches=True)
        assert model.exact_batches
        assert build_model(**model.config).exact_batches
        assert not build_model("detr_resnet50").exact_batches

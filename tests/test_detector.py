"""The detector: every kind of image, several images, results, and errors that name the image."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast import Detector
from detr_fast.data.label_map import COCO_LABEL_MAP, LabelMap
from detr_fast.inference.loading import Preprocess
from detr_fast.inference.results import Detection, Detections
from detr_fast.models.zoo import build_model

LABELS = LabelMap((10, 20), ("cat", "dog"))
NATIVE = Preprocess(short_side=None, max_size=None)
# What `TopLeft` finds in every image: the left half of it, whose score is the share of red.
BOX = (0.25, 0.5, 0.5, 1.0)


class TopLeft(nn.Module):
    """Finds one cat, certain as the top left pixel is red, and one dog of score 0.6."""

    num_classes = 2
    label_map = LABELS

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        self.batches.append([tuple(image.shape) for image in images])
        assert not self.training
        red = torch.stack([image[0, 0, 0] * 0.229 + 0.485 for image in images]).clamp(1e-6, 1)
        dog = torch.full_like(red, 0.6)
        nothing = torch.full_like(red, 1e-9)
        probabilities = torch.stack(
            [torch.stack([red, nothing, 1.001 - red], 1), torch.stack([nothing, dog, 1 - dog], 1)],
            dim=1,
        )
        boxes = torch.tensor([BOX, (0.5, 0.5, 0.2, 0.2)]).expand(len(images), -1, -1)
        return {"pred_logits": probabilities.log(), "pred_boxes": boxes * self.scale}


@pytest.fixture
def detector():
    return Detector(TopLeft(), device="cpu", preprocess=NATIVE)


def picture(width=8, height=6, colour=(255, 0, 0), others=(0, 0, 255)):
    """Top left quarter in one colour, the rest in another."""
    image = Image.new("RGB", (width, height), others)
    image.paste(colour, (0, 0, max(1, width // 2), max(1, height // 2)))
    return image


def assert_cat_and_dog(detections, width=8, height=6, red=1.0):
    assert detections.class_names == ("cat", "dog")
    assert detections.scores[0] == pytest.approx(red, abs=0.01)
    assert detections.boxes_xyxy[0].tolist() == pytest.approx([0, 0, width / 2, height])
    assert detections.image_size == (height, width)


# One image


def test_every_way_to_hold_an_image_gives_the_same(detector, tmp_path):
    image = picture()
    path = tmp_path / "a.png"
    image.save(path)
    hwc = np.asarray(image)
    chw = torch.from_numpy(hwc.copy()).permute(2, 0, 1)
    sources = [
        path,
        str(path),
        image,
        hwc,
        hwc.transpose(2, 0, 1),
        hwc.astype(np.float32) / 255,
        hwc.astype(np.float64) / 255,
        hwc.astype(np.uint16) * 257,
        hwc[:, ::-1][:, ::-1],
        chw,
        chw.permute(1, 2, 0),
        chw / 255,
        (chw / 255).half(),
        (chw / 255).requires_grad_(),
    ]
    for source in sources:
        detections = detector.predict(source, threshold=0.5)
        assert isinstance(detections, Detections)
        assert_cat_and_dog(detections)
        assert np.array_equal(np.asarray(detections.open_image()), hwc)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_of_pictures(detector, tmp_path, mode):
    white = picture(colour=(255, 255, 255), others=(0, 0, 0))
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.asarray(white.convert("L")).astype(np.uint16) * 257)
        image = image.convert(mode) if mode == "I" else image
    else:
        image = white.convert(mode)
    path = tmp_path / {"CMYK": "a.jpg", "YCbCr": "a.jpg", "I": "a.tiff"}.get(mode, "a.png")
    image.save(path, quality=100)
    assert_cat_and_dog(detector.predict(path, threshold=0.5))
    assert_cat_and_dog(detector.predict(image, threshold=0.5))


def test_a_dark_sixteen_bit_picture_stays_dark(detector):
    dark = Image.fromarray(np.full((6, 8), 200, dtype=np.uint16))
    assert np.asarray(detector.predict(dark).open_image()).max() == 1


def test_the_rotation_in_exif_is_applied(detector, tmp_path):
    upright = picture(width=8, height=16)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    path = tmp_path / "a.png"
    stored.save(path, exif=exif)
    assert Image.open(path).size == (16, 8)
    assert_cat_and_dog(detector.predict(path, threshold=0.5), width=8, height=16)
    assert_cat_and_dog(detector.predict(Image.open(path), threshold=0.5), width=8, height=16)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 3000)])
def test_extreme_sizes(detector, width, height):
    image = picture(width, height)
    assert_cat_and_dog(detector.predict(image, threshold=0.5), width, height)
    usual = Detector(TopLeft(), device="cpu")
    (shape,) = (usual.predict(image, threshold=0.5), usual.model.batches[0])[1]
    assert min(shape[1:]) >= 1
    assert max(shape[1:]) <= 1333


def test_long_thin_image_through_a_real_model():
    model = build_model("detr_tiny", num_classes=2)
    detector = Detector(model, device="cpu", preprocess=Preprocess(64, 128))
    image = np.zeros((10, 30000, 3), np.uint8)
    assert len(detector.predict(image, threshold=0)) == model.num_queries
    assert len(detector.predict(image[:1, :1], threshold=0)) == model.num_queries


def test_images_are_brought_to_the_usual_size_by_default():
    model = TopLeft()
    Detector(model, device="cpu").predict(picture(64, 48))
    assert model.batches == [[(3, 800, 1066)]]


def test_threshold_and_order(detector):
    assert len(detector.predict(picture(), threshold=0.99)) == 1
    assert detector.predict(picture(colour=(0, 0, 0)), threshold=0.5).class_names == ("dog",)
    grey = detector.predict(picture(colour=(140, 0, 0)), threshold=0.5)
    assert grey.class_names == ("dog", "cat"), "most certain first"
    none = detector.predict(picture(colour=(0, 0, 0)), threshold=1)
    assert len(none) == 0
    assert none.boxes_xyxy.shape == (0, 4)


def test_nonfinite_predictions_are_left_out_with_a_warning(detector):
    detector.model.scale.data.fill_(float("nan"))
    with pytest.warns(UserWarning, match="2 of the 2 predictions for an image are not finite"):
        assert len(detector.predict(picture(), threshold=0)) == 0


# Several images


def test_list_in_list_out(detector):
    images = [picture(), picture(colour=(0, 0, 0)), picture(16, 4)]
    for batch_size in (1, 2, 5):
        results = detector.predict(images, threshold=0.5, batch_size=batch_size)
        assert [r.image_size for r in results] == [(6, 8), (6, 8), (4, 16)]
        assert [len(r) for r in results] == [2, 1, 2]
    assert len(detector.predict(tuple(images[:1]))) == 1


def test_empty_list(detector):
    assert detector.predict([]) == []


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_four_dimensions_are_several_images(detector, kind):
    batch = np.stack([np.asarray(picture())] * 3)
    results = detector.predict(kind(batch), threshold=0.5)
    assert len(results) == 3
    assert_cat_and_dog(results[2])


def test_folder_in_the_order_of_names(detector, tmp_path):
    for name in ("b.jpg", "a.PNG", "c.bmp"):
        picture().save(tmp_path / name)
    (tmp_path / "deeper").mkdir()
    results = detector.predict(tmp_path)
    assert [r.path.name for r in results] == ["a.PNG", "b.jpg", "c.bmp"]
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"1 of 4 files are not images .*\(notes.txt\)"):
        assert len(detector.predict(str(tmp_path))) == 3


def test_folder_without_images(detector, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="contains no image: 1 files"):
        detector.predict(tmp_path)


# Errors


def test_missing_file_says_what_is_there(detector, tmp_path):
    picture().save(tmp_path / "street.png")
    with pytest.raises(FileNotFoundError, match=r"street\.jpg; found street\.png there"):
        detector.predict(tmp_path / "street.jpg")
    with pytest.raises(FileNotFoundError, match=r"is the part of its path that exists"):
        detector.predict(tmp_path / "no" / "such" / "a.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_truncated_file_is_named(detector, tmp_path, suffix, share):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "jpeg" if suffix == "jpg" else suffix)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    good = picture()
    with pytest.raises(ValueError, match=r"cut\.\w+"):
        detector.predict([good, path])


def test_file_of_another_kind_is_named(detector, tmp_path):
    path = tmp_path / "page.png"
    path.write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.png \(6 bytes\) is not an image"):
        detector.predict(path)


def test_decompression_bomb_is_refused_with_its_size(detector, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (1000, 1000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    with pytest.raises(ValueError, match=r"bomb\.png was refused.*1000000 pixels"):
        detector.predict(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((4, 4, 3), 200.0), r"values from 200 to 200; expected \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "expected"),
        (torch.randn(3, 4, 4), "do not normalise"),
        (np.zeros((5, 5, 7), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (17, "int"),
    ],
)
def test_what_is_no_image(detector, source, message):
    with pytest.raises(ValueError, match=message):
        detector.predict(source)
    with pytest.raises(ValueError, match=f"image 1 of the list: .*{message}"):
        detector.predict([picture(), source])


@pytest.mark.parametrize("options", [{"threshold": 1.2}, {"threshold": -1}, {"batch_size": 0}])
def test_options_out_of_range(detector, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        detector.predict(picture(), **options)


# Loading


def checkpoint_of(model, **extra):
    return {"model": model.state_dict(), "config": model.config, **extra}


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    return build_model("detr_tiny", num_classes=2, enc_layers=1, dec_layers=1).eval()


def test_checkpoint_with_label_map_and_size(small_model, tmp_path):
    path = tmp_path / "best.pth"
    content = checkpoint_of(
        small_model,
        label_map=LABELS.to_dict(),
        preprocess={"short_side": None, "max_size": None},
    )
    torch.save(content, path)
    detector = Detector(path, device="cpu")
    assert detector.preprocess == NATIVE
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    detections = detector.predict(image, threshold=0)
    assert set(detections.class_ids) <= {10, 20}
    same = Detector(small_model, "cpu", preprocess=NATIVE).predict(image, threshold=0)
    assert np.array_equal(detections.scores, same.scores)
    assert same.class_names[0].startswith("class ")


def test_checkpoint_without_a_size_is_evaluated_at_the_usual_one(small_model, tmp_path):
    torch.save(checkpoint_of(small_model), tmp_path / "a.pth")
    assert Detector(str(tmp_path / "a.pth"), "cpu").preprocess == Preprocess(800, 1333)


def test_weights_of_no_known_model(small_model, tmp_path):
    torch.save(small_model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds weights but does not say of which model"):
        Detector(tmp_path / "a.pth")


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match="did you mean 'detr_resnet50'"):
        Detector("detr_resnet_50")


def test_label_map_of_another_size(small_model):
    model = TopLeft()
    model.num_classes = 3
    with pytest.raises(ValueError, match="label map has 2 classes and the model 3"):
        Detector(model)


def test_model_of_91_classes_has_the_names_of_coco():
    model = TopLeft()
    model.label_map, model.num_classes = None, 91
    assert Detector(model, "cpu").label_map is COCO_LABEL_MAP


def test_model_that_trains_is_put_in_evaluation_mode(detector):
    detector.model.train()
    detector.predict(picture())
    assert not detector.model.training


# Attention


@pytest.mark.parametrize("size", [(48, 64), (50, 67), (64, 30), (1, 17)])
def test_attention_of_the_same_detections_as_predict(small_model, size):
    stride = small_model.backbone[0].stride
    detector = Detector(small_model, "cpu", preprocess=NATIVE)
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    maps = detector.attention(image, threshold=0)
    found = detector.predict(image, threshold=0)
    assert np.array_equal(maps.detections.boxes_xyxy, found.boxes_xyxy)
    cells = [-(-side // stride) for side in size]
    assert maps.weights.shape == (len(found), *cells)
    assert maps.covered == (size[0] / stride, size[1] / stride)
    assert maps.weights.sum((1, 2)) == pytest.approx(np.ones(len(found)), abs=1e-5)
    assert maps.plot(width=64).width >= 64


def test_attention_is_for_one_image_and_a_model_that_gives_it(detector, small_model):
    with pytest.raises(ValueError, match="TopLeft does not give its attention"):
        detector.attention(picture())
    with pytest.raises(ValueError, match="one image at a time; got 2"):
        Detector(small_model, "cpu").attention([picture(), picture()])
    nothing = Detector(small_model, "cpu", preprocess=NATIVE).attention(picture(), threshold=1)
    assert len(nothing.weights) == 0
    with pytest.raises(ValueError, match="at least one"):
        nothing.plot()


# Results


@pytest.fixture
def detections(detector, tmp_path):
    picture(80, 60).save(tmp_path / "cat.png")
    return detector.predict(tmp_path / "cat.png", threshold=0.5)


def test_single_objects(detections):
    assert len(detections) == 2
    first, second = detections
    assert isinstance(first, Detection)
    assert (first.class_id, second.class_id) == (10, 20)
    assert detections[-1] == second
    assert detections[1].box_xyxy == pytest.approx((32, 24, 48, 36))
    with pytest.raises(IndexError):
        detections[2]


def test_parts(detections):
    for index in (slice(1, None), [1], np.array([False, True]), detections.class_ids == 20):
        part = detections[index]
        assert isinstance(part, Detections)
        assert part.class_names == ("dog",)
        assert part.boxes_xyxy.shape == (1, 4)
    assert len(detections[:0]) == 0


def test_types(detections):
    assert detections.boxes_xyxy.dtype == np.float32
    assert detections.scores.dtype == np.float32
    assert detections.class_ids.dtype == np.int64


def test_repr(detections):
    assert repr(detections) == (
        "Detections(cat.png, 80x60 px, 2 objects)\n"
        "  cat 1.00 at (0, 0, 40, 60)\n"
        "  dog 0.60 at (32, 24, 48, 36)"
    )
    assert repr(detections[:1]).startswith("Detections(cat.png, 80x60 px, 1 object)")


def test_coco_results(detections):
    first, second = detections.to_coco(image_id=7)
    assert first["bbox"] == pytest.approx([0, 0, 40, 60])
    assert second["category_id"] == 20
    assert {type(value) for value in second.values()} == {int, list, float}
    assert second["image_id"] == 7


def test_names_that_supervision_takes(detections):
    supervision = pytest.importorskip("supervision")
    theirs = supervision.Detections(
        xyxy=detections.xyxy,
        confidence=detections.confidence,
        class_id=detections.class_id,
        data=detections.data,
    )
    assert len(theirs) == 2
    assert theirs["class_name"].tolist() == ["cat", "dog"]


def test_the_same_arrays_under_the_names_of_supervision(detections):
    assert detections.xyxy is detections.boxes_xyxy
    assert detections.confidence is detections.scores
    assert detections.class_id is detections.class_ids
    assert detections.data["class_name"].tolist() == ["cat", "dog"]


def test_results_can_be_sent_to_another_process(detections):
    assert repr(pickle.loads(pickle.dumps(detections))) == repr(detections)


def test_plot_and_save(detections, tmp_path):
    assert detections.plot(enlarge=False).size == (80, 60)
    path = detections.save(tmp_path / "new" / "drawn.jpg")
    assert Image.open(path).size == detections.plot().size
    folder = tmp_path / "all"
    folder.mkdir()
    assert detections.save(folder) == folder / "cat.png"


def test_save_does_not_overwrite_the_image(detections, tmp_path):
    with pytest.raises(ValueError, match="is the image itself"):
        detections.save(tmp_path)
    with pytest.raises(ValueError, match="does not end in an image format"):
        detections.save(tmp_path / "drawn.doc")


def test_save_of_an_image_from_memory(detector, tmp_path):
    detections = detector.predict(picture())
    with pytest.raises(ValueError, match="the image came from memory"):
        detections.save(tmp_path)
    assert detections.save(tmp_path / "a.png").exists()


def test_plot_after_the_image_is_gone(detections):
    detections.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image at .*cat\.png"):
        detections.plot()

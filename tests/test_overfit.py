"""A small DETR learns eight generated images by heart, from scratch."""

import pytest
import torch
from toy_training import ToyDataset

from detr_fast import build_model
from detr_fast.data.shapes import ShapesDataset
from detr_fast.data.transforms import val_transform
from detr_fast.training.overfit import images_with_objects, overfit_recipe
from detr_fast.training.recipe import Recipe, preset
from detr_fast.training.trainer import Trainer


def test_eight_images_are_learned_by_heart(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = ShapesDataset(8, transform=val_transform(None), side=(64, 64), objects=(1, 3))
    images = images_with_objects(data, 8)
    recipe = overfit_recipe(preset("shapes"), 8).replace(lr=1e-3, lr_backbone=1e-3, epochs=120)
    model = build_model("detr_tiny", num_classes=len(data.label_map), dropout=0.0)
    trainer = Trainer(
        model, recipe, images, images, output_dir=tmp_path / "run", eval_every=recipe.epochs
    )
    record = trainer.fit().record
    torch.set_num_threads(threads)
    assert record["test_coco_eval_bbox"][1] >= 0.9


def test_images_without_objects_are_passed_over():
    subset = images_with_objects(ToyDataset(6, empty=(0, 2)), 3)
    assert subset.indices == [1, 3, 4]
    truth = subset.ground_truth()
    assert [image["id"] for image in truth["images"]] == [101, 103, 104]
    assert {a["image_id"] for a in truth["annotations"]} == {101, 103, 104}


@pytest.mark.parametrize(
    ("count", "message"), [(0, "expected at least 1"), (5, "training set has 4 among its 6")]
)
def test_too_few_images(count, message):
    with pytest.raises(ValueError, match=message):
        images_with_objects(ToyDataset(6, empty=(0, 2)), count)


def test_recipe_is_without_regularisation():
    recipe = overfit_recipe(Recipe(batch_size=2, accumulate=4), 8)
    assert (recipe.dropout, recipe.weight_decay, recipe.augment) == (0, 0, False)
    assert (recipe.batch_size, recipe.accumulate) == (2, 1)
    assert recipe.lr_drop == recipe.epochs == 50
    assert overfit_recipe(Recipe(batch_size=16), 3).batch_size == 3

"""Recipes, their presets, parameter groups and schedules."""

import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn
from toy_training import toy_model

from detr_fast.training.optimization import (
    build_optimizer,
    build_scheduler,
    parameter_groups,
    steps_each_epoch,
)
from detr_fast.training.recipe import PRESETS, Recipe, preset


def test_defaults_are_those_of_the_paper():
    recipe = preset("paper_300")
    assert (recipe.lr, recipe.lr_backbone, recipe.weight_decay) == (1e-4, 1e-5, 1e-4)
    assert (recipe.epochs, recipe.lr_drop, recipe.clip_max_norm) == (300, 200, 0.1)
    assert (recipe.dropout, recipe.eos_coef, recipe.aux_loss) == (0.1, 0.1, True)
    assert (recipe.set_cost_class, recipe.set_cost_bbox, recipe.set_cost_giou) == (1, 5, 2)
    assert recipe.loss_weights() == {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    assert (preset("paper_500").epochs, preset("paper_500").lr_drop) == (500, 400)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml(name):
    recipe = preset(name)
    stored = yaml.safe_load(yaml.safe_dump(recipe.to_dict()))
    assert Recipe().with_known_fields({**stored, "coco_path": "x"}) == recipe


def test_recipes_need_no_torch():
    code = "import sys, detr_fast.training.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "schedule is 'cosine'; expected one of 'step', 'one_cycle'"),
        ({"amp": "fp8"}, "amp is 'fp8'"),
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore'"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": float("nan")}, "lr is nan; expected 0 or more"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a value in \[0, 1\)"),
        ({"warmup": 0}, r"warmup is 0; expected a share in \(0, 1\)"),
        ({"batchsize": 2}, "no field 'batchsize'; did you mean 'batch_size'"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().replace(**changes)


def test_unknown_preset():
    with pytest.raises(ValueError, match="no preset 'paper'; the presets are paper_300"):
        preset("paper")


def test_backbone_has_its_own_rate():
    model = toy_model()
    rest, backbone = parameter_groups(model, Recipe())
    assert (rest["lr"], backbone["lr"]) == (1e-4, 1e-5)
    assert all("backbone" in name for name in backbone["names"])
    assert not any("backbone" in name for name in rest["names"])
    grouped = {*map(id, rest["params"]), *map(id, backbone["params"])}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}


def test_frozen_parameters_are_left_out():
    model = toy_model(train_backbone=False)
    (group,) = parameter_groups(model, Recipe())
    assert not any("backbone" in name for name in group["names"])
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Linear(1, 1).requires_grad_(False), Recipe())


def _rates(recipe, steps_per_epoch):
    model = toy_model()
    optimizer = build_optimizer(model, recipe)
    scheduler = build_scheduler(optimizer, recipe, steps_per_epoch)
    each_epoch = steps_each_epoch(recipe)
    rates = []
    for _ in range(recipe.epochs):
        for _ in range(steps_per_epoch):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if not each_epoch:
                scheduler.step()
        if each_epoch:
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def test_step_schedule_drops_after_lr_drop_epochs():
    rates = _rates(Recipe(epochs=4, lr_drop=3), steps_per_epoch=2)
    expected = torch.tensor([1e-4] * 6 + [1e-5] * 2, dtype=torch.float64)
    torch.testing.assert_close(rates[:, 0], expected)
    torch.testing.assert_close(rates[:, 1], expected / 10)


def test_one_cycle_rises_and_falls():
    recipe = Recipe(epochs=5, schedule="one_cycle", warmup=0.2, lr=1e-3, lr_backbone=1e-4)
    rates = _rates(recipe, steps_per_epoch=4)
    assert rates[:, 0].argmax() == 3
    assert rates[3].tolist() == pytest.approx([1e-3, 1e-4])
    assert rates[0].tolist() == pytest.approx([1e-3 / 25, 1e-4 / 25])
    assert (rates[3:].diff(dim=0) < 0).all()
    assert rates[-1, 0] < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_one_cycle_of_few_steps(steps):
    """Of 10 steps a warm-up of 0.1 is one step, which has no length."""
    rates = _rates(Recipe(epochs=steps, schedule="one_cycle", warmup=0.1), steps_per_epoch=1)
    assert rates[0, 0] == pytest.approx(1e-4 / 25)
    assert (rates > 0).all()
    assert rates.max() <= 1e-4 * (1 + 1e-9)

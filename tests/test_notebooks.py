"""The notebooks run from the first cell to the last."""

import json
from pathlib import Path

import torch

from detr_fast.data.shapes import SHAPES_PANOPTIC_LABEL_MAP
from detr_fast.models.zoo import build_model

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "panoptic.ipynb"


def cells():
    content = json.loads(NOTEBOOK.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


def run(sources):
    namespace = {}
    for number, source in enumerate(sources, start=1):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    return namespace


def test_panoptic_notebook_runs_on_the_weights_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build_model("detr_tiny_panoptic")
    with torch.no_grad():
        model.detr.class_embed.bias.zero_()[7] = 8.0
    content = {
        "model": model.state_dict(),
        "config": model.config,
        "label_map": SHAPES_PANOPTIC_LABEL_MAP.to_dict(),
        "preprocess": {"short_side": None},
    }
    weights = tmp_path / "runs" / "train" / "weights"
    weights.mkdir(parents=True)
    torch.save(content, weights / "best.pth")
    namespace = run(cells())
    assert namespace["found"].names == ("stripes",)
    assert (tmp_path / "panoptic_export" / "panoptic.json").is_file()
    assert "stripes" in capsys.readouterr().out


def test_notebook_was_saved_without_outputs():
    content = json.loads(NOTEBOOK.read_text())
    assert all(not c.get("outputs") for c in content["cells"])

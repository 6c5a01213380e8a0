"""The notebooks run from the first cell to the last."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "panoptic.ipynb"


def cells():
    content = json.loads(NOTEBOOK.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


def run(sources):
    namespace = {}
    for number, source in enumerate(sources, start=1):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    return namespace


def test_panoptic_notebook_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(cells())["figures"]["PQ"] > 0.7
    assert (tmp_path / "panoptic_export" / "panoptic.json").is_file()
    assert "9 classes, 3 of them stuff" in capsys.readouterr().out


def test_notebook_was_saved_without_outputs():
    content = json.loads(NOTEBOOK.read_text())
    assert all(not c.get("outputs") for c in content["cells"])

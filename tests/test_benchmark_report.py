"""benchmarks/report.py: which plots are worth a file."""

import pytest

report = pytest.importorskip(
    "report", reason="the folder benchmarks is not beside that of the tests"
)


def content(*problems):
    """Two subjects at these (images, queries)."""
    return {
        "benchmarks": [
            {"subject": subject, "batch": batch, "queries": queries, "median": queries * seconds}
            for subject, seconds in (("detr_fast", 1e-6), ("scipy", 1e-5))
            for batch, queries in problems
        ]
    }


@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_plot_has_three_points_along_its_axis(tmp_path, points):
    problems = [(8, queries) for queries in (100, 300, 900)[:points]]
    report.plot(content(*problems), "queries", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists() == (points == 3)


def test_panels_of_fewer_points_are_left_out(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    titles = []

    def savefig(figure, *_, **__):
        titles.extend(panel.get_title() for panel in figure.axes)

    monkeypatch.setattr(Figure, "savefig", savefig)
    longest = [(8, 100), (8, 300), (8, 900)]
    report.plot(content(*longest, (16, 100), (16, 300)), "queries", tmp_path / "plot.png")
    assert titles == ["batch 8"]


def test_an_axis_that_the_benchmarks_do_not_have(tmp_path):
    report.plot(content((8, 100), (8, 300), (8, 900)), "targets", tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())

import sys

import cv2
import pytest

from benchmarks.__main__ import main
from benchmarks.shared.plots import WIDTH_PX, bars, grouped_bars, lines, points, write_plot


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_bars_are_as_long_as_their_values():
    (axes,) = bars("Rates", "frames per second", [("a", 1.0), ("b", 2.0), ("none", 0.0)], {"goal": 1.5}).axes
    assert labels(axes) == ["a", "b", "none"]
    assert [bar.get_width() for bar in axes.patches] == [1, 2, 0]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "0"]
    assert axes.yaxis_inverted()  # the first is at the top
    (mark,) = axes.lines
    assert list(mark.get_xdata()) == [1.5, 1.5]
    assert (axes.get_xlabel(), axes.get_figure().get_suptitle()) == ("frames per second", "Rates")


def test_groups_have_a_bar_for_what_they_have():
    figure = grouped_bars("Times", "ms", {"decode": {"p50": 1.0, "p99": 3.0}, "engine": {"p50": 200.0}}, log=True)
    (axes,) = figure.axes
    assert labels(axes) == ["decode", "engine"]
    assert sorted(bar.get_width() for bar in axes.patches) == [1, 3, 200]
    assert axes.get_xscale() == "log"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["p50", "p99"]


def test_lines_go_through_their_points():
    figure = lines("Flicker", "frame", "flicker", {"as it is": {"off": [(0, 1), (1, 3)]}, "noise": {"off": [(0, 2)]}})
    upper, lower = figure.axes
    assert upper.lines[0].get_xydata().tolist() == [[0, 1], [1, 3]]
    assert (upper.get_title("left"), lower.get_title("left")) == ("as it is", "noise")
    assert (upper.get_ylabel(), lower.get_xlabel()) == ("flicker", "frame")


def test_points_lie_where_their_numbers_are():
    (axes,) = points("title", "x", "y", {"a": (0.0, 0.5), "b": (4.0, 1.0)}).axes
    assert axes.collections[0].get_offsets().tolist() == [[0, 0.5], [4, 1]]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]


@pytest.mark.parametrize("values", [[], [("x" * 300, 1.0)], [(f"bar {index}", 10.0**index) for index in range(30)]])
def test_extremes_are_drawn_and_nothing_is_cut_off(values, tmp_path):
    write_plot(tmp_path / "new" / "plot.png", bars("title " * 50, "x", values))
    image = cv2.imread(str(tmp_path / "new" / "plot.png"))
    assert image.shape[1] == WIDTH_PX
    for edge in (image[:1], image[-1:], image[:, :1], image[:, -1:]):
        assert edge.min() == 255


def test_without_matplotlib_nothing_is_measured(monkeypatch, capsys, tmp_path):
    for name in ("benchmarks.shared.plots", "compile.inspect.figure"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["soak", "--plot", str(tmp_path / "plot.png")]) == 2
    printed = capsys.readouterr()
    assert "pip install 'edgemask[plots]'" in printed.err
    assert printed.out == ""

"""Drawings of the report: bins that keep the mean, no spikes, colours of the page."""

import re

from evals.plots import Bar, binned, scores
from evals.report import _spaced


def test_a_last_line_right_after_another_makes_no_spike() -> None:
    points = [{"seconds": t, "output_tokens": 100 * t} for t in (1.0, 2.0, 3.0)] + [
        {"seconds": 3.01, "output_tokens": 320}
    ]
    assert [point.get("seconds", 0.0) for point in _spaced([{}, *points])] == [0.0, 1.0, 2.0, 3.01]


def test_bins_keep_the_mean() -> None:
    x, y = binned(list(range(1000)), [2.0] * 1000, 10)
    assert len(x) == 10
    assert x[0] == 49.5
    assert set(y) == {2.0}
    assert binned([1], [2], 10) == ([1], [2])


def test_a_drawing_takes_the_pages_colours_and_font() -> None:
    drawing = scores([("a", {"teacher": Bar(0.9, 0.8, 1.0), "student": Bar(None, None, None)})])
    assert set(drawing.svg) == {"wide", "narrow"}
    for svg in drawing.svg.values():
        assert "var(--teacher)" in svg
        assert "font-family" not in svg
        assert not re.search(r"#0[1-7]0", svg), "no stand-in colour is left"

"""The report's plots as inline SVG: text stays text, and colours are the page's own, so both follow its light or dark.

Every plot is drawn twice, for a desktop's and a phone's width, because an SVG that is scaled down is unreadable.
Promises the same SVG for the same figures. Knows nothing of files.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

WIDTHS = {"wide": 860, "narrow": 340}
"""Width of each drawing in the pixels at which it is shown."""
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "teacher": "#040404",
    "student": "#050505",
    "untrained": "#060606",
    "band": "#070707",
}
"""Stand-ins that matplotlib draws with; each becomes the page's custom property of that name."""
BINS = 160
"""Points of a line: one for every few pixels of the wide drawing."""
FEW_POINTS = 12
"""So few points are also drawn as dots, since one alone makes no line."""
GOOD_BAND = (0.80, 0.95)
"""Retained share that the original recipe calls good."""


class Series(msgspec.Struct, frozen=True):
    """One line."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


class Bar(msgspec.Struct, frozen=True):
    """A value with its interval; an end that is None is not drawn."""

    value: float | None
    low: float | None
    high: float | None


class Drawing(msgspec.Struct, frozen=True):
    """A plot in both widths, with words for those who cannot see it."""

    title: str
    svg: dict[str, str]


def lines(title: str, panels: Sequence[tuple[str, Sequence[Series]]], x_label: str) -> Drawing:
    """Draw one or more panels of lines over a common x axis; a panel is (label of y, its series)."""

    def draw(size: str) -> str:
        figure, axes = _figure(size, len(panels) * 190 + 40, len(panels))
        for axis, (label, series) in zip(axes, panels, strict=True):
            for one in series:
                marker = "o" if len(one.x) <= FEW_POINTS else None
                axis.plot(one.x, one.y, color=COLOURS[one.colour], linewidth=1.8, marker=marker, label=one.label)
            axis.set_title(label, loc="left", color=COLOURS["ink"], fontsize=12)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.margins(x=0.01)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}")
            if len(series) > 1:
                axis.legend(frameon=False, fontsize=12, labelcolor=COLOURS["ink"])
        axes[-1].set_xlabel(x_label, color=COLOURS["muted"], fontsize=12)
        return _svg(figure)

    return _both(title, draw)


def scores(rows: Sequence[tuple[str, dict[str, Bar]]]) -> Drawing:
    """Draw the scores of teacher, student and untrained student, a row for every (label, scores)."""

    def draw(size: str) -> str:
        figure, (axis,) = _figure(size, 40 + 52 * len(rows), 1)
        for number, (_, bars) in enumerate(rows):
            known = [bar.value for bar in bars.values() if bar.value is not None]
            if known:
                axis.plot((min(known), max(known)), (number, number), color=COLOURS["line"], linewidth=3, zorder=1)
            for place, (name, bar) in enumerate(bars.items()):
                _whisker(axis, bar, number + 0.22 * (place - 1), COLOURS[name])
        _rows(axis, [label for label, _ in rows], size)
        axis.set_xlim(-0.02, 1.02)
        return _svg(figure)

    return _both("Scores with 95% intervals", draw)


def retained(rows: Sequence[tuple[str, Bar]]) -> Drawing:
    """Draw the retained share of every row against the band that counts as good."""

    def draw(size: str) -> str:
        figure, (axis,) = _figure(size, 54 + 40 * len(rows), 1)
        axis.axvspan(*GOOD_BAND, color=COLOURS["band"], linewidth=0, zorder=0)
        for number, (_, bar) in enumerate(rows):
            _whisker(axis, bar, number, COLOURS["student"])
        ends = [end for _, bar in rows for end in (bar.high, bar.value) if end is not None]
        axis.set_xlim(-0.02, max([1.05, *(end + 0.05 for end in ends)]))
        _rows(axis, [label for label, _ in rows], size)
        return _svg(figure)

    return _both("Retained share of the teacher's score, with the band from 80% to 95%", draw)


def binned(x: Sequence[float], y: Sequence[float], size: int) -> tuple[list[float], list[float]]:
    """Return at most `size` points: the mean of x and of y in as many equal groups of points."""
    if len(x) <= size:
        return list(x), list(y)
    edges = [len(x) * number // size for number in range(size + 1)]
    groups = [slice(low, high) for low, high in itertools.pairwise(edges)]
    return [_mean(x[group]) for group in groups], [_mean(y[group]) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _both(title: str, draw: Callable[[str], str]) -> Drawing:
    import matplotlib

    svg = {}
    for size in WIDTHS:
        # One salt per drawing: two drawings on a page must not share an id. A `$` in a name begins no formula.
        settings = {"svg.fonttype": "none", "svg.hashsalt": f"{title}{size}", "text.parse_math": False}
        with matplotlib.rc_context(settings):
            svg[size] = draw(size)
    return Drawing(title, svg)


def _figure(size: str, height: int, panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTHS[size] / 72, height / 72), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.grid(color=COLOURS["line"], linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(colors=COLOURS["muted"], labelsize=12, length=0)
        axis.locator_params(axis="x", nbins=4 if size == "narrow" else 8)
        axis.locator_params(axis="y", nbins=5)
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _rows(axis: Any, labels: Sequence[str], size: str) -> None:
    longest = 14 if size == "narrow" else 32
    axis.set_yticks(range(len(labels)), [_short(label, longest) for label in labels])
    axis.tick_params(axis="y", colors=COLOURS["ink"])
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _short(label: str, longest: int) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _whisker(axis: Any, bar: Bar, y: float, colour: str) -> None:
    if bar.value is None:
        return
    if bar.low is not None and bar.high is not None:
        axis.plot((bar.low, bar.high), (y, y), color=colour, linewidth=1.6)
    axis.plot((bar.value,), (y,), color=colour, marker="o", markersize=8, linestyle="none", clip_on=False)


def _svg(figure: Any) -> str:
    """Return a figure as an SVG element that takes the page's font and colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
    # Style sheets and group names of one drawing would hold for the whole page.
    text = re.sub(r"<style.*?</style>", "", re.sub(r'<g id="[^"]*"', "<g", text), flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;?", "", re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text))
    for name, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    return text

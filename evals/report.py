"""report.html: one page that says what a run kept, dropped and why, how fast, and how much the student retained.

Promises a page that needs no network and no script, the same for the same run, in which everything that a model or
a user wrote is escaped. Works for a run of any stages.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.shards import replace_file
from evals import plots
from evals.contestants import NAMES
from evals.plots import Bar, Drawing, Series
from evals.stats import Comparison, Estimate
from evals.story import Story, read_story
from evals.summary import Figures

PAGE = "report.html"
TEMPLATE = "report.html.j2"
LONGEST_TEXT = 900
"""Characters of a row or an answer that are shown."""
SHARDS_SHOWN = 200
SHORTEST_S = 0.5


def write_report(run: Path) -> Path:
    """Write a run's report and return its path.

    Raises: MissingError where the folder is no run, DataError where a file in it is not what was written.
    """
    story = read_story(run)
    path = run / PAGE
    replace_file(path, render(story).encode("utf-8", "replace"))
    return path


def render(story: Story) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "share": _share,
        "estimate": _estimate,
        "shown": _shown,
        "size": _size,
    }
    source = importlib.resources.files("evals").joinpath(TEMPLATE).read_text(encoding="utf-8")
    summary = story.summary
    return environment.from_string(source).render(
        story=story,
        summary=summary,
        figures=summary.figures if summary else None,
        names=NAMES,
        words=METRIC_WORDS,
        verdict=VERDICTS.get(summary.verdict, summary.verdict) if summary else "",
        ratio=_parameter_ratio(summary.models) if summary else None,
        pace=_pace(story.throughput.points),
        throughput=_throughput(story.throughput.points),
        training=_training(story.training.points),
        score_plot=_score_plot(summary.figures) if summary else None,
        retained_plot=_retained_plot(summary.figures) if summary else None,
        shards_shown=SHARDS_SHOWN,
    )


METRIC_WORDS = {
    "exact": "exact match",
    "normalised": "normalised match",
    "json": "JSON equal",
    "json_parses": "JSON parses",
    "json_fields": "JSON fields (F1)",
    "numeric": "number within tolerance",
    "has_number": "holds a number",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
}
VERDICTS = {
    "good": "The student retains at least 80% of the teacher's score.",
    "short": "The student retains less than 80% of the teacher's score.",
    "inconclusive": "The interval leaves open whether the student retains 80%.",
    "not computable": "The retained share cannot be computed.",
}


def _share(value: float | None, digits: int = 1) -> str:
    return "\u2013" if value is None else f"{100 * value:.{digits}f}%"


def _estimate(estimate: Estimate) -> str:
    """Write a figure with its interval."""
    if estimate.low is None or estimate.high is None:
        return _share(estimate.value)
    return f"{_share(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _shown(text: str) -> str:
    """Cut a long text and make control characters visible; escaping is the template's."""
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text):,} characters)"
    return "".join(f"\\x{ord(char):02x}" if char < " " and char not in "\n\t" else char for char in cut)


def _size(count: int) -> str:
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:,.{min(1, power)}f} {('B', 'kB', 'MB', 'GB')[power]}"


def _parameter_ratio(models: Mapping[str, Mapping[str, Any]]) -> float | None:
    teacher, student = (models.get(name, {}).get("parameters") for name in ("teacher", "student"))
    return teacher / student if teacher and student else None


def _number(point: Mapping[str, Any], key: str) -> float:
    value = point.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _pace(points: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return totals and mean rates from the last line of a generation's metrics."""
    last = points[-1] if points else {}
    seconds = _number(last, "seconds")
    if not seconds:
        return None
    saved = last.get("tokens_saved")
    return {
        "seconds": seconds,
        "rows_per_s": _number(last, "asked") / seconds,
        "output_tokens": _number(last, "output_tokens"),
        "tokens_per_s": _number(last, "output_tokens") / seconds,
        "tokens_saved": sum(saved.values()) if isinstance(saved, dict) else _number(last, "tokens_saved"),
    }


def _throughput(points: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw output tokens a second, and prompts asked and rows kept, over the seconds of work."""
    if len(points) < 3:
        return None
    points = _spaced([{}, *points])
    seconds = [_number(point, "seconds") for point in points]
    tokens = [_number(point, "output_tokens") for point in points]
    size = plots.BINS
    times, totals = plots.binned(seconds, tokens, size)
    rates = [
        (after - before) / (end - start) if end > start else 0.0
        for before, after, start, end in zip(totals, totals[1:], times, times[1:], strict=False)
    ]
    asked, kept = ([_number(point, key) for point in points] for key in ("asked", "kept"))
    panels = [
        ("Output tokens a second", [Series("tokens", "student", times[1:], rates)]),
        (
            "Rows so far",
            [
                Series("asked", "untrained", *plots.binned(seconds, asked, size)),
                Series("kept", "student", *plots.binned(seconds, kept, size)),
            ],
        ),
    ]
    return plots.lines("Throughput over time", panels, "seconds")


def _spaced(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Drop what comes less than half a second before the next line: a rate over so little time is noise."""
    kept: list[Mapping[str, Any]] = []
    for point in points:
        while len(kept) > 1 and _number(point, "seconds") - _number(kept[-1], "seconds") < SHORTEST_S:
            kept.pop()
        kept.append(point)
    return kept


def _training(points: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw training and evaluation loss by step."""
    found = []
    for key, label, colour in (("loss", "training", "student"), ("eval_loss", "held out", "teacher")):
        having = [point for point in points if isinstance(point.get(key), int | float)]
        if having:
            steps = [_number(point, "step") for point in having]
            curve = plots.binned(steps, [_number(point, key) for point in having], plots.BINS)
            found.append(Series(label, colour, *curve))
    if not found or all(len(series.x) < 2 for series in found):
        return None
    return plots.lines("Training loss", [("Loss by step", found)], "optimiser step")


def _labelled(figures: Figures) -> list[tuple[str, Comparison]]:
    """Return all items and, where there is more than one, every template."""
    rows = [("all items", figures.overall)]
    if len(figures.templates) > 1:
        rows += [(line.template or "(none)", line.comparison) for line in figures.templates[:12]]
    return rows


def _bar(estimate: Estimate) -> Bar:
    return Bar(estimate.value, estimate.low, estimate.high)


def _score_plot(figures: Figures) -> Drawing:
    return plots.scores(
        [(label, {name: _bar(getattr(comparison, name)) for name in NAMES}) for label, comparison in _labelled(figures)]
    )


def _retained_plot(figures: Figures) -> Drawing | None:
    rows = [(label, _bar(one.retained)) for label, one in _labelled(figures) if one.retained.value is not None]
    return plots.retained(rows) if rows else None

"""The figures of an evaluation: three models' answers in, one summary out.

Pure: no models, no disk, no clock. Promises the same summary for the same answers, seed and resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec
import numpy as np

from evals.answers import Answer
from evals.contestants import NAMES
from evals.metrics import normal
from evals.overlap import Overlap
from evals.stats import Comparison, Estimate, compare, holm, wilson

Trio = Mapping[str, Sequence[Answer]]
"""Answers of `teacher`, `student` and `untrained`, item by item in the same order."""


class TemplateFigures(msgspec.Struct, frozen=True):
    """One line of the per-template table."""

    template: str
    metric: str
    comparison: Comparison
    invalid: dict[str, float]
    """Share of answers of each model that cannot even be read: not JSON, no number, or empty."""
    adjusted_p: float | None
    """McNemar's p of the template after Holm's correction for the number of templates."""


class Behaviour(msgspec.Struct, frozen=True):
    """What one model's answers look like, right or wrong."""

    metrics: dict[str, float]
    """Mean of every metric over the items that have it."""
    empty: float
    truncated: float
    failed: int
    """Items without an answer; they count as wrong."""
    median_chars: float


class Figures(msgspec.Struct, frozen=True):
    """Everything that is computed from the answers."""

    overall: Comparison
    templates: list[TemplateFigures]
    """Worst retained share first."""
    behaviour: dict[str, Behaviour]
    agreement: Estimate
    """Share of items on which student and teacher give the same answer, right or wrong."""
    copied: Estimate
    """Share of the teacher's wrong answers that the student gives word for word."""
    clean: Comparison | None
    """The items that no training row and no few-shot example holds; None where all are clean, or none is."""


def figures(answers: Trio, overlap: Overlap | None, *, resamples: int, seed: int) -> Figures:
    """Compute all figures."""
    items = list(range(len(answers["teacher"])))
    known = overlap.ids if overlap else set()
    clean = [index for index in items if answers["teacher"][index].id not in known]

    def compared(chosen: Sequence[int]) -> Comparison:
        table = [[answers[name][index].score for name in NAMES] for index in chosen]
        return compare(np.array(table, dtype=np.float64).reshape(-1, 3), resamples=resamples, seed=seed)

    overall = compared(items)
    return Figures(
        overall=overall,
        templates=_templates(answers, compared),
        behaviour={name: _behaviour(answers[name]) for name in NAMES},
        agreement=_agreement(answers, items),
        copied=_agreement(answers, [index for index in items if answers["teacher"][index].score < 1]),
        clean=compared(clean) if 0 < len(clean) < len(items) else None,
    )


def headline(comparison: Comparison) -> dict[str, Any]:
    """Return the figures that the last line on stdout holds; null is what cannot be computed."""
    return {
        "teacher": _short(comparison.teacher.value),
        "student": _short(comparison.student.value),
        "untrained": _short(comparison.untrained.value),
        "retained": _short(comparison.retained.value),
        "retained_low": _short(comparison.retained.low),
        "retained_high": _short(comparison.retained.high),
        "items": comparison.items,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _templates(answers: Trio, compared: Callable[[Sequence[int]], Comparison]) -> list[TemplateFigures]:
    groups: dict[tuple[str, str], list[int]] = {}
    for index, answer in enumerate(answers["teacher"]):
        groups.setdefault((answer.template, answer.metric), []).append(index)
    comparisons = [compared(chosen) for chosen in groups.values()]
    tested = {index: one.outcomes.p for index, one in enumerate(comparisons) if one.outcomes}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    found = [
        TemplateFigures(
            template=template,
            metric=metric,
            comparison=comparisons[number],
            invalid={name: _mean([_invalid(answers[name][index]) for index in chosen]) for name in NAMES},
            adjusted_p=adjusted.get(number),
        )
        for number, ((template, metric), chosen) in enumerate(groups.items())
    ]
    return sorted(found, key=lambda line: (line.comparison.retained.value is None, line.comparison.retained.value or 0))


def _invalid(answer: Answer) -> float:
    readable = answer.scores.get("json_parses", answer.scores.get("has_number", 1.0))
    return float(readable == 0 or not answer.output.strip())


def _behaviour(answers: Sequence[Answer]) -> Behaviour:
    names = sorted({name for answer in answers for name in answer.scores})
    return Behaviour(
        metrics={name: _mean([one.scores[name] for one in answers if name in one.scores]) for name in names},
        empty=_mean([float(not answer.output.strip()) for answer in answers]),
        truncated=_mean([float(answer.finish_reason == "length") for answer in answers]),
        failed=sum(bool(answer.error) for answer in answers),
        median_chars=float(median(len(answer.output) for answer in answers)) if answers else 0.0,
    )


def _agreement(answers: Trio, chosen: Sequence[int]) -> Estimate:
    same = [normal(answers["teacher"][index].output) == normal(answers["student"][index].output) for index in chosen]
    return Estimate(sum(same) / len(same), *wilson(sum(same), len(same))) if same else Estimate(None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

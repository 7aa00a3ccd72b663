"""How sure the figures are: Wilson intervals, a paired bootstrap of the retained share, McNemar's exact test.

Promises that what cannot be computed is None and never a guess, and that a seed decides every interval. The unit
is the item: scores come as (items, 3) for teacher, student and untrained student on the same items. Knows nothing
of models, metrics or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Interval = tuple[float, float]

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
GOOD = 0.80
"""Retained share that counts as good: the original recipe's lower bound."""
FEW_ITEMS = 30
"""Below this no verdict is given: at 90% right, the interval on retained is wider than 25 points."""


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its 95% interval; None where it cannot be computed."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Outcomes(msgspec.Struct, frozen=True):
    """The 2x2 table of right and wrong, student against teacher, and McNemar's exact p."""

    both: int
    teacher_only: int
    student_only: int
    neither: int
    p: float


class Comparison(msgspec.Struct, frozen=True):
    """Teacher, student and untrained student on one set of items."""

    items: int
    teacher: Estimate
    student: Estimate
    untrained: Estimate
    retained: Estimate
    """student / teacher."""
    gap_closed: Estimate
    """(student - untrained) / (teacher - untrained): retained alone flatters what needed no training."""
    outcomes: Outcomes | None
    """None where the metric is not right-or-wrong."""
    verdict: str
    """`good`, `short`, `inconclusive` or `not computable`, from the interval of `retained`."""


def compare(scores: Scores, *, resamples: int, seed: int) -> Comparison:
    """Compare the three columns of scores (items, 3)."""
    binary = bool(np.isin(scores, (0.0, 1.0)).all())
    drawn = resampled_means(scores, resamples=resamples, seed=seed)
    means = scores.mean(axis=0) if len(scores) else np.full(3, math.nan)
    teacher, student, untrained = (_mean(scores[:, column], drawn[:, column], binary=binary) for column in range(3))
    retained = _ratio(means[1], means[0], drawn[:, 1], drawn[:, 0])
    return Comparison(
        items=len(scores),
        teacher=teacher,
        student=student,
        untrained=untrained,
        retained=retained,
        gap_closed=_ratio(
            means[1] - means[2], means[0] - means[2], drawn[:, 1] - drawn[:, 2], drawn[:, 0] - drawn[:, 2]
        ),
        outcomes=outcomes(scores[:, 0], scores[:, 1]) if binary and len(scores) else None,
        verdict=verdict(retained, len(scores)),
    )


def wilson(hits: float, count: int) -> Interval:
    """Return Wilson's 95% interval of a hit rate. Source: Wilson, JASA 1927."""
    rate = hits / count
    scale = 1 + Z95**2 / count
    centre = (rate + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(rate * (1 - rate) / count + Z95**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def resampled_means(scores: Scores, *, resamples: int, seed: int) -> Scores:
    """Return the column means (resamples, columns) of items drawn with replacement, whole rows at a time.

    Equal rows are drawn together: how often each distinct row comes up is multinomial, which is the same draw.
    """
    if not len(scores):
        return np.full((resamples, scores.shape[1]), math.nan)
    rows, counts = np.unique(scores, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    # Two million counts at a time: 16 MB, whatever the number of items.
    chunk = max(1, 2_000_000 // len(rows))
    parts = [
        generator.multinomial(len(scores), counts / len(scores), size=min(chunk, resamples - start)) @ rows
        for start in range(0, resamples, chunk)
    ]
    return np.concatenate(parts) / len(scores)


def outcomes(teacher: Scores, student: Scores) -> Outcomes:
    """Return the 2x2 table of two columns of 0 and 1."""
    both = int((teacher * student).sum())
    teacher_only, student_only = int(teacher.sum()) - both, int(student.sum()) - both
    neither = len(teacher) - both - teacher_only - student_only
    return Outcomes(both, teacher_only, student_only, neither, p=mcnemar(teacher_only, student_only))


def mcnemar(one: int, other: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two counts of items on which the models differ."""
    tail = sum(math.comb(one + other, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / (1 << (one + other)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number. Source: Holm, Scandinavian Journal of Statistics 1979."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(retained: Estimate, items: int) -> str:
    """Say what the interval of the retained share allows to say."""
    if retained.value is None:
        return "not computable"
    if retained.low is None or retained.high is None or items < FEW_ITEMS:
        return "inconclusive"
    if retained.low >= GOOD:
        return "good"
    return "short" if retained.high < GOOD else "inconclusive"


def _mean(scores: Scores, drawn: Scores, *, binary: bool) -> Estimate:
    if not len(scores):
        return Estimate(None)
    low, high = wilson(float(scores.sum()), len(scores)) if binary else _percentiles(drawn)
    return Estimate(float(scores.mean()), low, high)


def _ratio(above: float, below: float, drawn_above: Scores, drawn_below: Scores) -> Estimate:
    """Return a ratio; no interval where some resample has nothing to divide by, as the ratio is then unbounded."""
    if not below > 0:
        return Estimate(None)
    if not (drawn_below > 0).all():
        return Estimate(float(above / below))
    return Estimate(float(above / below), *_percentiles(drawn_above / drawn_below))


def _percentiles(drawn: Scores) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)

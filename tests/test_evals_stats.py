"""Intervals and tests against closed forms, known values and simulation."""

import numpy as np
import pytest

from evals.stats import Estimate, compare, holm, mcnemar, outcomes, resampled_means, verdict, wilson


def table(both: int = 0, teacher_only: int = 0, student_only: int = 0, neither: int = 0) -> np.ndarray:
    """Scores of teacher, student and an untrained student that gets nothing right."""
    rows = [[1, 1, 0]] * both + [[1, 0, 0]] * teacher_only + [[0, 1, 0]] * student_only + [[0, 0, 0]] * neither
    return np.array(rows, dtype=float).reshape(-1, 3)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_gives_the_published_values(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "p"), [(1, 9, 22 / 1024), (0, 0, 1.0), (5, 5, 1.0), (0, 10, 2 / 1024), (3, 0, 0.25)]
)
def test_mcnemar_is_the_two_sided_binomial_tail(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p)
    assert mcnemar(other, one) == mcnemar(one, other)


def test_mcnemar_of_many_items_does_not_overflow() -> None:
    assert 0 <= mcnemar(2000, 3000) < 1e-30


def test_holm_multiplies_by_the_tests_left_and_never_reorders() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_outcomes_count_the_four_cells() -> None:
    scores = table(both=7, teacher_only=3, student_only=2, neither=5)
    found = outcomes(scores[:, 0], scores[:, 1])
    assert (found.both, found.teacher_only, found.student_only, found.neither) == (7, 3, 2, 5)


def test_drawing_cells_is_the_bootstrap_of_items() -> None:
    scores = table(both=60, teacher_only=25, student_only=5, neither=10)
    drawn = resampled_means(scores, resamples=20_000, seed=1)
    generator = np.random.default_rng(2)
    naive = np.array([scores[generator.integers(0, 100, 100)].mean(axis=0) for _ in range(20_000)])
    for quantile in (2.5, 50, 97.5):
        ours = np.percentile(drawn[:, 1] / drawn[:, 0], quantile)
        theirs = np.percentile(naive[:, 1] / naive[:, 0], quantile)
        assert ours == pytest.approx(theirs, abs=0.01)


def test_the_interval_on_retained_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(3)
    cells, shares = table(1, 1, 1, 1), np.array([0.75, 0.15, 0.03, 0.07])
    truth = 0.78 / 0.90
    covered = 0
    for trial in range(300):
        scores = cells[generator.choice(4, size=200, p=shares)]
        retained = compare(scores, resamples=1000, seed=trial).retained
        assert retained.low is not None
        assert retained.high is not None
        covered += retained.low <= truth <= retained.high
    assert 0.91 <= covered / 300 <= 0.985


def test_intervals_are_paired() -> None:
    """Models that fail on the same items are told apart far better than their separate intervals suggest."""
    same = compare(table(both=80, neither=20), resamples=2000, seed=1).retained
    apart = compare(table(both=64, teacher_only=16, student_only=16, neither=4), resamples=2000, seed=1).retained
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    assert apart.value == 1.0
    assert apart.high is not None
    assert apart.high - (apart.low or 0) > 0.2


def test_a_seed_decides_the_interval() -> None:
    scores = table(both=40, teacher_only=20, neither=5)
    assert compare(scores, resamples=500, seed=7) == compare(scores, resamples=500, seed=7)
    assert compare(scores, resamples=500, seed=7) != compare(scores, resamples=500, seed=8)


def test_what_cannot_be_computed_is_none() -> None:
    zero = compare(table(student_only=3, neither=50), resamples=200, seed=1)
    assert zero.retained == Estimate(None)
    assert zero.verdict == "not computable"
    rare = compare(table(both=1, neither=50), resamples=2000, seed=1)
    assert rare.retained == Estimate(1.0), "some resample holds no right answer of the teacher, so there is no interval"
    assert rare.verdict == "inconclusive"
    nothing = compare(table(), resamples=10, seed=1)
    assert nothing.items == 0
    assert nothing.teacher == Estimate(None)
    assert nothing.outcomes is None


def test_gap_closed_takes_the_untrained_score_off() -> None:
    scores = np.array([[1, 1, 1]] * 50 + [[1, 1, 0]] * 30 + [[1, 0, 0]] * 20, dtype=float)
    found = compare(scores, resamples=500, seed=1)
    assert found.retained.value == pytest.approx(0.8)
    assert found.gap_closed.value == pytest.approx(0.6)
    assert compare(scores[:, [0, 1, 0]], resamples=50, seed=1).gap_closed == Estimate(None)


def test_scores_between_0_and_1_get_bootstrap_intervals_and_no_2x2_table() -> None:
    generator = np.random.default_rng(5)
    scores = generator.uniform(0.4, 0.8, size=(300, 3))
    found = compare(scores, resamples=2000, seed=1)
    assert found.outcomes is None
    half = 1.96 * scores[:, 0].std() / 300**0.5
    assert found.teacher.low == pytest.approx(scores[:, 0].mean() - half, abs=0.004)


@pytest.mark.parametrize(
    ("low", "high", "items", "word"),
    [
        (0.85, 0.95, 200, "good"),
        (0.80, 1.10, 200, "good"),
        (0.75, 0.90, 200, "inconclusive"),
        (0.40, 0.79, 200, "short"),
        (1.00, 1.00, 29, "inconclusive"),
    ],
)
def test_the_verdict_comes_from_the_interval(low: float, high: float, items: int, word: str) -> None:
    assert verdict(Estimate(0.9, low, high), items) == word

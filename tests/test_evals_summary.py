"""Summary and findings: figures from answers, and each warning exactly where its cause is."""

from collections.abc import Callable

import pytest

from evals.answers import Answer
from evals.findings import find
from evals.metrics import scores
from evals.overlap import Overlap
from evals.summary import Figures, figures, headline

Write = Callable[[int], str]


def answers(write: Write, *, items: int, metric: str = "normalised", finish_reason: str = "stop") -> list[Answer]:
    """One model's answers to items whose reference is their number."""
    return [
        Answer(
            id=str(number),
            template="odd" if number % 2 else "even",
            metric=metric,
            instruction=f"Say {number}",
            reference=str(number),
            output=write(number),
            scores=scores(metric, str(number), write(number)),
            finish_reason=finish_reason,
        )
        for number in range(items)
    ]


def right_up_to(share: float) -> Write:
    return lambda number: str(number) if number % 100 < 100 * share else "wrong"


def compared(
    teacher: Write, student: Write, untrained: Write, *, items: int = 400, overlap: Overlap | None = None
) -> Figures:
    trio = {
        name: answers(write, items=items)
        for name, write in (("teacher", teacher), ("student", student), ("untrained", untrained))
    }
    return figures(trio, overlap, resamples=500, seed=1)


def codes(found: Figures, overlapping: int = 0) -> list[str]:
    return [finding.code for finding in find(found, overlapping=overlapping)]


def different(number: int) -> str:
    return f"another wrong answer {number}" if number % 100 >= 80 else str(number)


def test_a_sound_evaluation_has_no_findings() -> None:
    found = compared(right_up_to(0.9), different, lambda number: f"no {number}")
    assert headline(found.overall)["retained"] == pytest.approx(0.8 / 0.9, abs=1e-4)
    assert codes(found) == []


def test_the_worst_template_comes_first() -> None:
    found = compared(str, lambda number: str(number) if number % 2 else "wrong", lambda _: "no")
    assert [(line.template, line.comparison.retained.value) for line in found.templates] == [
        ("even", 0.0),
        ("odd", 1.0),
    ]
    even, odd = found.templates
    assert even.adjusted_p is not None
    assert even.adjusted_p < 1e-20
    assert odd.adjusted_p == 1.0


def test_a_template_that_cannot_be_compared_comes_last() -> None:
    found = compared(lambda number: str(number) if number % 2 else "wrong", lambda _: "no", lambda _: "no")
    assert [(line.template, line.comparison.retained.value) for line in found.templates] == [
        ("odd", 0.0),
        ("even", None),
    ]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("teacher-zero", compared(lambda _: "no", str, lambda _: "no")),
        ("weak-teacher", compared(right_up_to(0.4), right_up_to(0.3), lambda _: "no")),
        ("few-items", compared(str, str, lambda _: "no", items=50)),
        ("format", compared(str, lambda number: f"{number}.", lambda _: "no")),
        ("empty", compared(str, lambda number: str(number) if number % 10 else "", lambda _: "no")),
        ("length", compared(str, lambda number: f"{number} or so, I would say", lambda _: "no")),
        ("inherited", compared(right_up_to(0.9), right_up_to(0.9), lambda _: "no")),
        ("untrained", compared(right_up_to(0.9), different, different)),
    ],
)
def test_a_finding_fires_where_its_cause_is(code: str, found: Figures) -> None:
    assert code in codes(found)


def test_answers_that_run_into_the_limit_and_answers_that_failed_are_found() -> None:
    trio = {name: answers(different, items=400) for name in ("teacher", "untrained")}
    trio["student"] = answers(different, items=400, finish_reason="length")
    assert "truncated" in codes(figures(trio, None, resamples=50, seed=1))
    lost = Answer(
        id="0",
        metric="normalised",
        instruction="",
        reference="0",
        output="",
        scores={"exact": 0, "normalised": 0},
        error="x",
    )
    trio["student"] = [lost, *answers(different, items=400)[1:]]
    assert "failed" in codes(figures(trio, None, resamples=50, seed=1))


def test_the_clean_items_are_scored_apart() -> None:
    """The student is right only where it was trained on the item: overlap makes the whole difference."""
    seen = [str(number) for number in range(100)]
    overlap = Overlap(rows=1000, same=seen, slots=[], shown=[])
    found = compared(str, lambda number: str(number) if number < 100 else "wrong", lambda _: "no", overlap=overlap)
    assert found.overall.retained.value == 0.25
    assert found.clean is not None
    assert (found.clean.items, found.clean.retained.value) == (300, 0.0)
    assert "overlap" in codes(found, overlapping=100)
    everything = Overlap(rows=1000, same=[str(number) for number in range(400)], slots=[], shown=[])
    assert compared(str, str, str, overlap=everything).clean is None


def test_copied_counts_the_teachers_wrong_answers_only() -> None:
    found = compared(right_up_to(0.9), lambda number: "wrong" if number % 100 >= 95 else str(number), lambda _: "no")
    assert found.copied.value == 0.5
    assert found.agreement.value == 0.95
    assert compared(str, str, str).copied.value is None

"""Findings: what the figures of an evaluation warn of, each with its number and what to do next.

Promises to stay silent where there is too little to tell. The limits are proposals of this project, not published
ones. Pure: figures in, sentences out.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from evals.stats import FEW_ITEMS
from evals.summary import Behaviour, Figures

ENOUGH_ITEMS = 200
"""At 90% right the interval on retained is then 11 points wide: enough to tell 0.87 from 0.80 three times in four."""
WEAK_TEACHER = 0.5
FORMAT_GAP = 0.10
"""Normalised match minus exact match."""
MORE_TRUNCATED = 0.05
EMPTY = 0.02
COPIED = 0.5
SOLVED_BEFORE = 0.9
"""Share of the student's score that the untrained student has already."""


class Finding(msgspec.Struct, frozen=True):
    """One warning."""

    code: str
    text: str


def find(figures: Figures, *, overlapping: int) -> list[Finding]:
    """Return what the figures warn of, the gravest first."""
    return [*_certainty(figures), *_overlap(figures, overlapping), *_format(figures), *_content(figures)]


def _certainty(figures: Figures) -> Iterator[Finding]:
    overall = figures.overall
    teacher = overall.teacher.value or 0.0
    if teacher == 0:
        yield Finding(
            "teacher-zero", "The teacher got no item right, so nothing can be retained: mend its prompt first."
        )
    elif teacher < WEAK_TEACHER:
        yield Finding(
            "weak-teacher",
            f"The teacher itself gets {teacher:.0%} right; better examples in its prompt raise both scores.",
        )
    if overall.items < ENOUGH_ITEMS:
        verdict = "too few for a verdict" if overall.items < FEW_ITEMS else "few"
        yield Finding("few-items", f"{overall.items} items are {verdict}; {ENOUGH_ITEMS} narrow the interval.")
    for name, behaviour in figures.behaviour.items():
        if behaviour.failed:
            yield Finding(
                "failed", f"The {name} left {behaviour.failed} items unanswered; they count as wrong. Evaluate again."
            )


def _overlap(figures: Figures, overlapping: int) -> Iterator[Finding]:
    if not overlapping:
        return
    items = figures.overall.items
    text = f"{overlapping} of {items} items are in the training rows or the teacher's examples"
    clean = figures.clean
    if clean is None:
        yield Finding("overlap", f"{text}: the score may be a memory, so use other items.")
    elif clean.retained.value is None:
        yield Finding("overlap", f"{text}; on the {clean.items} others retained cannot be computed.")
    else:
        yield Finding("overlap", f"{text}; on the {clean.items} others the student retains {clean.retained.value:.0%}.")


def _format(figures: Figures) -> Iterator[Finding]:
    teacher, student = figures.behaviour["teacher"], figures.behaviour["student"]
    gap = student.metrics["normalised"] - student.metrics["exact"]
    if gap > FORMAT_GAP:
        yield Finding(
            "format", f"Normalised match is {gap:.0%} above exact match: the student's format is off, not its answers."
        )
    if student.truncated - teacher.truncated > MORE_TRUNCATED:
        yield Finding(
            "truncated",
            f"{student.truncated:.0%} of the student's answers run into eval.max_tokens, {teacher.truncated:.0%} of "
            "the teacher's: it may not have learnt to stop, so check that training rows end with the stop token.",
        )
    if student.empty > EMPTY and student.empty > teacher.empty:
        yield Finding("empty", f"{student.empty:.0%} of the student's answers are empty; compare its chat template.")
    yield from _lengths(teacher, student)


def _lengths(teacher: Behaviour, student: Behaviour) -> Iterator[Finding]:
    if not teacher.median_chars or not student.median_chars:
        return
    ratio = student.median_chars / teacher.median_chars
    if not 0.5 <= ratio <= 2:
        yield Finding("length", f"The student's answers are {ratio:.1f} times as long as the teacher's; read some.")


def _content(figures: Figures) -> Iterator[Finding]:
    overall, copied = figures.overall, figures.copied
    if copied.low is not None and copied.low >= COPIED:
        yield Finding(
            "inherited",
            f"The student repeats {copied.value:.0%} of the teacher's wrong answers: filter the data, "
            "or take a better teacher.",
        )
    student, untrained = overall.student.value or 0.0, overall.untrained.value or 0.0
    if student and untrained >= SOLVED_BEFORE * student:
        yield Finding(
            "untrained",
            f"The untrained student already gets {untrained:.0%} right; retained says little about training here.",
        )

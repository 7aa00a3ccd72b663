"""Agreement: how many answers of a copy are the student's own, to the letter.

Promises that a question which either could not be asked counts as no answer at all where the student failed it, and as
a different one where only the copy did. Pure: no disk, no models.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.errors import ExportError
from engine.rows import Completion, Prompt

LEAST = 0.98
"""Share of answers that must be the same."""
SHOWN = 10
"""Differing answers that are kept to be read."""


class Different(msgspec.Struct, frozen=True):
    """A question that the copy answers otherwise."""

    question: str
    student: str
    copy: str


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    items: int
    """Questions that the student answered."""
    same: int
    distinct: int
    """Different answers of the student: few of them prove little."""
    least: float = LEAST
    different: list[Different]
    """The first of them."""

    @property
    def share(self) -> float:
        """Share of answers that are the same."""
        return self.same / self.items

    @property
    def good(self) -> bool:
        """Say whether the copy may pass for the student."""
        return self.share >= self.least


def compare(prompts: Sequence[Prompt], student: Sequence[Completion], copy: Sequence[Completion]) -> Agreement:
    """Compare answers to the same prompts, in the same order.

    Raises: ExportError where the student answered none.
    """
    asked = [triple for triple in zip(prompts, student, copy, strict=True) if not triple[1].error]
    if not asked:
        raise ExportError(f"the student itself answers none of the held-out questions ({student[0].error})")
    different = [
        Different(prompt.question, wanted.text, got.error or got.text)
        for prompt, wanted, got in asked
        if got.error or got.text != wanted.text
    ]
    return Agreement(
        items=len(asked),
        same=len(asked) - len(different),
        distinct=len({wanted.text for _, wanted, _ in asked}),
        different=different[:SHOWN],
    )

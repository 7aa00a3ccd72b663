"""TemplateTally: what became of the prompts of one template, and what its answers cost."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from engine.rows import Outcome, Row


class Share(NamedTuple):
    """What a template has added to the sums over all of them."""

    sums: tuple[int, ...] = (0,) * 5
    ended: Counter[int] = Counter()


NOTHING = Share()


class TemplateTally:
    """Counts of one template: what its answers cost says what one that was not finished would have cost."""

    __slots__ = ("asked", "ended", "held", "name", "number", "results", "share", "skipped", "whole", "whole_tokens")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        """Place among the templates, by their first prompts."""
        self.asked = 0
        self.results: Counter[str] = Counter()
        """Prompts by what became of them: `kept`, `failed`, or the rule that rejected or skipped them."""
        self.skipped = 0
        self.held = 0
        self.ended: Counter[int] = Counter()
        """Rows that were ended early, by the tokens that they had by then."""
        self.whole = 0
        """Prompts that were answered to the end, whatever became of them."""
        self.whole_tokens = 0
        self.share = NOTHING

    def add(self, outcome: Outcome, row: Row) -> None:
        """Count one committed row."""
        self.asked += 1
        self.results[outcome if outcome in ("kept", "failed") else row.rule] += 1
        if outcome == "skipped":
            self.held += row.held
            self.skipped += not row.held
        elif row.aborted:
            self.ended[row.output_tokens] += 1
        elif row.cost or outcome != "failed":
            self.whole += 1
            self.whole_tokens += row.cost

    @property
    def saves(self) -> bool:
        """Whether anything of it was skipped, held back or ended early."""
        return bool(self.skipped or self.held or self.ended)

    def saved(self, mean: float) -> tuple[float, float, float]:
        """Return about the tokens that skipping, holding back and ending early saved; `mean` of all if it has none."""
        if self.whole:
            mean = self.whole_tokens / self.whole
        ended = self.ended.copy()
        rest = sum(count * max(0.0, mean - tokens) for tokens, count in ended.items())
        # Some answers to what was not asked would have been long, too: at least as long as those that were ended.
        longer = sum(count * max(0.0, tokens - mean) for tokens, count in ended.items())
        answered = self.whole + ended.total()
        mean += longer / answered if answered else 0.0
        return self.skipped * mean, self.held * mean, rest

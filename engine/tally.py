"""Tally: what became of the prompts of a run, in counts, and what early decisions saved.

Promises that asked = kept + rejected + skipped + failed, and says so loudly where it does not hold.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from engine.errors import PotstillError
from engine.filter import QUOTA, RULES
from engine.rows import Outcome, Row

SHOWN = 20
"""Templates in a summary or a line of metrics: those with the most prompts."""


class TemplateTally:
    """The same of one template: what its answers cost says what one that was not finished would have cost."""

    __slots__ = ("ended", "held", "results", "skipped", "whole", "whole_tokens")

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        """Prompts by what became of them: `kept`, `failed`, or the rule that rejected or skipped them."""
        self.skipped = 0
        self.held = 0
        self.ended: Counter[int] = Counter()
        """Rows that were ended early, by the tokens that they had by then."""
        self.whole = 0
        """Prompts that were answered to the end, whatever became of them."""
        self.whole_tokens = 0

    def add(self, outcome: Outcome, row: Row) -> None:
        """Count one committed row."""
        self.results[outcome if outcome in ("kept", "failed") else row.rule] += 1
        if outcome == "skipped":
            self.held += row.held
            self.skipped += not row.held
        elif row.aborted:
            self.ended[row.output_tokens] += 1
        elif row.cost or outcome != "failed":
            self.whole += 1
            self.whole_tokens += row.cost

    def saved(self, mean: float) -> tuple[float, float, float]:
        """Return the tokens that skipping, holding back and ending early saved; `mean` of all, where it has none."""
        if self.whole:
            mean = self.whole_tokens / self.whole
        ended = self.ended.copy()
        rest = sum(count * max(0.0, mean - tokens) for tokens, count in ended.items())
        # Some answers to what was not asked would have been long, too: at least as long as those that were ended.
        longer = sum(count * max(0.0, tokens - mean) for tokens, count in ended.items())
        answered = self.whole + ended.total()
        mean += longer / answered if answered else 0.0
        return self.skipped * mean, self.held * mean, rest


class Tally:
    """Counts rows by outcome, rule and template, and the tokens that they cost."""

    def __init__(self) -> None:
        self.asked = 0
        self.kept = 0
        self.failed = 0
        self.skipped = 0
        self.rejected: Counter[str] = Counter(dict.fromkeys(RULES, 0))
        self.skipped_by: Counter[str] = Counter()
        self.templates: dict[str, TemplateTally] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.kept_tokens = 0

    def add(self, outcome: Outcome, row: Row) -> None:
        """Count one committed row."""
        self.asked += 1
        self.prompt_tokens += row.prompt_tokens
        self.output_tokens += row.cost
        if outcome == "kept":
            self.kept += 1
            self.kept_tokens += row.output_tokens
        elif outcome == "rejected":
            self.rejected[row.rule] += 1
        elif outcome == "skipped":
            self.skipped += 1
            self.skipped_by[row.rule] += 1
        else:
            self.failed += 1
        template = self.templates.get(row.template)
        if template is None:
            template = self.templates[row.template] = TemplateTally()
        template.add(outcome, row)

    @property
    def candidates(self) -> int:
        """Prompts that the budget of candidates counts: all but those of a quota that was filled."""
        return self.asked - self.rejected[QUOTA] - self.skipped_by[QUOTA]

    @property
    def tokens_saved(self) -> dict[str, int]:
        """Output tokens that early decisions saved: an estimate, by the mean length of a template's whole answers.

        A low one for rows that were ended for their length: they would have gone on past the mean.
        """
        templates = list(self.templates.values())  # the thread that serves metrics asks while others are added
        whole = sum(one.whole for one in templates)
        mean = sum(one.whole_tokens for one in templates) / whole if whole else 0.0
        saved = [one.saved(mean) for one in templates]
        skipped, held, aborted = (round(sum(part)) for part in zip(*saved, strict=True)) if saved else (0, 0, 0)
        return {"skipped": skipped, "held": held, "aborted": aborted}

    def largest(self) -> list[tuple[str, TemplateTally]]:
        """Return the templates with the most prompts, in the order of their names."""
        by_size = sorted(self.templates.items(), key=lambda item: -item[1].results.total())
        return sorted(by_size[:SHOWN])

    def lost(self) -> Counter[str]:
        """Return how many prompts each rule cost, skipped and rejected together."""
        return self.rejected + self.skipped_by

    def check(self) -> None:
        """Raise PotstillError where the counts do not add up: a row was lost or counted twice."""
        total = self.kept + sum(self.rejected.values()) + self.skipped + self.failed
        if total != self.asked:
            raise PotstillError(f"counts do not add up: {self.asked} asked, {total} accounted for; please report this")

    def summary(self) -> dict[str, Any]:
        """Return the counts under the names that the last line on stdout uses."""
        return {
            "asked": self.asked,
            "kept": self.kept,
            "rejected": {rule: count for rule, count in self.rejected.items() if count or rule in RULES},
            "skipped": self.skipped,
            "skipped_by": dict(self.skipped_by),
            "failed": self.failed,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "kept_tokens": self.kept_tokens,
            "tokens_saved": self.tokens_saved,
            "templates": {name: dict(one.results) for name, one in self.largest()},
        }

"""Tally: what became of the prompts of a run, in counts, and what early decisions saved.

Promises that asked = kept + rejected + skipped + failed, and says so loudly where it does not hold.
"""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest
from threading import Lock
from typing import Any

from engine.errors import PotstillError
from engine.filter import QUOTA, RULES
from engine.rows import Outcome, Row
from engine.savings import Savings
from engine.template_tally import TemplateTally

SHOWN = 20
"""Templates in a summary or a line of metrics: those with the most prompts."""
CHANGED = 256
"""So many templates have changed when they are taken in, which takes 2 ms: whoever asks waits no longer than that."""


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
        self._whole = self._whole_tokens = 0
        self._changed: set[TemplateTally] = set()
        self._largest: list[TemplateTally] = []
        self._savings = Savings()
        self._lock = Lock()  # the thread that serves metrics asks while rows are added
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
            template = self.templates[row.template] = TemplateTally(row.template, len(self.templates))
        before = template.whole
        template.add(outcome, row)
        if template.whole > before:
            self._whole += 1
            self._whole_tokens += row.cost
        self._changed.add(template)
        if len(self._changed) >= CHANGED:
            with self._lock:
                self._catch_up()

    @property
    def candidates(self) -> int:
        """Prompts that the budget of candidates counts: all but those of a quota that was filled."""
        return self.asked - self.rejected[QUOTA] - self.skipped_by[QUOTA]

    @property
    def tokens_saved(self) -> dict[str, int]:
        """Output tokens that early decisions saved: an estimate, by the mean length of a template's whole answers.

        It may be off in both directions: rows that are ended early are not like those that are not. One that is ended
        for its length would have gone on past the mean, and a refusal would soon have been over.
        """
        with self._lock:
            self._catch_up()
            return self._savings.tokens(self._whole_tokens / self._whole if self._whole else 0.0)

    def largest(self) -> list[tuple[str, TemplateTally]]:
        """Return the templates with the most prompts, in the order of their names."""
        with self._lock:
            self._catch_up()
            return sorted((one.name, one) for one in self._largest)

    def _catch_up(self) -> None:
        """Take in the templates that have changed: no other can be among the largest now that was not before."""
        changed = [self._changed.pop() for _ in range(len(self._changed))]
        for one in changed:
            if one.saves:
                self._savings.update(one)
        known = {*self._largest, *changed}
        self._largest = nsmallest(SHOWN, known, key=lambda one: (-one.asked, one.number))

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

"""Tally: what became of the prompts of a run, in counts.

Promises that asked = kept + rejected + skipped + failed, and says so loudly where it does not hold.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from engine.errors import PotstillError
from engine.filter import RULES
from engine.rows import Outcome, Row


class Tally:
    """Counts rows by outcome, rule and template, and the tokens that they cost."""

    def __init__(self) -> None:
        self.asked = 0
        self.kept = 0
        self.failed = 0
        self.skipped = 0
        self.rejected: Counter[str] = Counter(dict.fromkeys(RULES, 0))
        self.skipped_by: Counter[str] = Counter()
        self.templates: dict[str, Counter[str]] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.kept_tokens = 0
        self._whole = 0
        self._whole_tokens = 0
        self._aborted_saved = 0.0

    def add(self, outcome: Outcome, row: Row) -> None:
        """Count one committed row."""
        self.asked += 1
        self.prompt_tokens += row.prompt_tokens
        self.output_tokens += row.sampled_tokens or row.output_tokens
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
        self.templates.setdefault(row.template, Counter())[row.rule or "kept"] += 1
        if row.aborted:
            self._aborted_saved += max(0.0, self._mean - row.output_tokens)
        elif outcome in ("kept", "rejected"):
            self._whole += 1
            self._whole_tokens += row.output_tokens

    @property
    def tokens_saved(self) -> dict[str, int]:
        """Output tokens that early decisions saved, estimated with the mean length of rows that were finished.

        A low estimate: a row that was ended for its length would have gone on past the mean.
        """
        return {"skipped": round(self.skipped * self._mean), "aborted": round(self._aborted_saved)}

    @property
    def _mean(self) -> float:
        return self._whole_tokens / self._whole if self._whole else 0.0

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
            "rejected": dict(self.rejected),
            "skipped": self.skipped,
            "skipped_by": dict(self.skipped_by),
            "failed": self.failed,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "tokens_saved": self.tokens_saved,
        }

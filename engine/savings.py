"""Savings: the tokens that early decisions saved, in running sums, since a prompt file may name 100,000 templates.

Promises the figures of a walk through all templates, in whatever order their rows came. Knows counts; nothing of rows.
"""

from __future__ import annotations

from collections import Counter
from math import fsum

from engine.template_tally import NOTHING, Share, TemplateTally

UNITS = 2**32
"""Parts of a token that are counted: sums of whole numbers are exact, so what is taken out again leaves nothing."""


class Savings:
    """Sums over templates that are brought up to date one by one."""

    def __init__(self) -> None:
        self._sums = list(NOTHING.sums)
        self._ended: Counter[int] = Counter()
        """Rows that were ended early, by their tokens, of templates without a mean of their own."""
        self._mixed: set[TemplateTally] = set()
        """Templates whose every answer was ended early, and of which prompts were skipped too: few."""

    def update(self, one: TemplateTally) -> None:
        """Put what a template adds now in the place of what it added before."""
        mixed = not one.whole and bool(one.ended) and bool(one.skipped or one.held)
        before, one.share = one.share, _share(one, mixed=mixed)
        self._sums = [old + new - gone for old, new, gone in zip(self._sums, one.share.sums, before.sums, strict=True)]
        if before.ended:
            self._ended.subtract(before.ended)
        if one.share.ended:
            self._ended.update(one.share.ended)
        if mixed:
            self._mixed.add(one)
        else:
            self._mixed.discard(one)

    def tokens(self, mean: float) -> dict[str, int]:
        """Return what was saved, by kind of decision; `mean`: tokens of a whole answer, of all templates."""
        *own, skipped, held = self._sums
        mixed = [one.saved(mean) for one in self._mixed]
        rest = [count * max(0.0, mean - tokens) for tokens, count in self._ended.items()]
        return {
            "skipped": round(fsum([own[0] / UNITS, skipped * mean, *(one[0] for one in mixed)])),
            "held": round(fsum([own[1] / UNITS, held * mean, *(one[1] for one in mixed)])),
            "aborted": round(fsum([own[2] / UNITS, *rest])),
        }


def _share(one: TemplateTally, *, mixed: bool) -> Share:
    """Return what a template adds: tokens by the mean of its own whole answers, or what the mean of all will decide."""
    if one.whole:
        own = (round(part * UNITS) for part in one.saved(0.0))
        return Share((*own, 0, 0), NOTHING.ended)
    not_asked = (0, 0) if mixed else (one.skipped, one.held)
    return Share((0, 0, 0, *not_asked), one.ended.copy())

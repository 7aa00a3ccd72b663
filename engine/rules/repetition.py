"""Degenerate text: the same words, or the same bytes, over and over.

It cannot decide early: the share of repeated words may fall again.
"""

from __future__ import annotations

import zlib

from engine import rule_settings as settings
from engine.rules import Draft

COMPRESSED_FROM = 256
"""A shorter text does not compress enough to tell a list from a loop."""


class RepetitionRule:
    """Rejects an output that repeats itself."""

    def __init__(self, chosen: settings.Repetition) -> None:
        self._words = chosen.words
        self._max_share = chosen.max_share
        self._min_ratio = chosen.min_ratio

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        share = repeated_share(draft.output.split(), self._words)
        if share > self._max_share:
            return f"{share:.0%} of its words are in runs of {self._words} that came before"
        data = draft.output.encode("utf-8", "replace")
        if len(data) >= COMPRESSED_FROM:
            ratio = len(zlib.compress(data, 6)) / len(data)
            if ratio < self._min_ratio:
                return f"it packs to {ratio:.0%} of its size"
        return None


def repeated_share(words: list[str], length: int) -> float:
    """Return the share of words that stand in a run of `length` words that came before."""
    seen: set[tuple[str, ...]] = set()
    repeated = bytearray(len(words))
    for start in range(len(words) - length + 1):
        run = tuple(words[start : start + length])
        if run in seen:
            repeated[start : start + length] = b"\x01" * length
        seen.add(run)
    return sum(repeated) / len(words) if words else 0.0

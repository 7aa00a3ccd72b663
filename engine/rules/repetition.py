"""Degenerate text: the same words, or the same bytes, over and over.

It can decide early where the share of repeated words could not fall far enough before the output is too long to
be kept. Of the bytes it says nothing early: how well a text packs depends on what comes.
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
        self.max_chars: int | None = None
        self._words = chosen.words
        self._max_share = chosen.max_share
        self._min_ratio = chosen.min_ratio

    def feed(self, partial: str) -> str | None:
        if self.max_chars is None:
            return None
        text = partial.strip()
        words = text.split()[:-1]  # the last one may go on
        # A further word takes a character and a space; the last word, too, may become one that came nowhere before.
        most = len(words) + 1 + (self.max_chars - len(text) + 1) // 2
        if len(words) <= self._max_share * most:
            return None
        share = repeated_share(words, self._words) * len(words) / most
        return f"{share:.0%} or more of its words are in runs that came before" if share > self._max_share else None

    def finish(self, draft: Draft) -> str | None:
        if draft.finish_reason == "repetition":
            return "the engine ended it, since it repeats itself (finish_reason)"
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

"""Rules that read one row: blank outputs, outputs that were cut off, outputs that only say the prompt again.

They cannot decide early: an output that is blank, or an echo, so far may go on to be something else.
"""

from __future__ import annotations

import re
import unicodedata

from engine import rule_settings as settings
from engine.rules import Draft

WORD = re.compile(r"\w+")
SENTENCE_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f\u061f\u0964\"'\u201d\u2019\u00bb)]}>`*|:;0123456789")
"""Characters that an output that was not cut off may end in; digits and closing marks, for lists, sums and code."""


def words_of(text: str) -> list[str]:
    """Return a text's words, case folded."""
    return WORD.findall(text.casefold())


class BlankRule:
    """Rejects an output of nothing that is seen."""

    def __init__(self, chosen: settings.Blank) -> None:
        pass

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        if any(unicodedata.category(character)[0] not in "ZCM" for character in draft.output):
            return None
        return "nothing but white space" if draft.output else "empty"


class TruncatedRule:
    """Rejects an output that was cut off."""

    def __init__(self, chosen: settings.Truncated) -> None:
        self._sentence = chosen.sentence

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        if draft.finish_reason == "length":
            return "ended for its length (finish_reason)"
        end = draft.output.rstrip()[-1:]
        if self._sentence and not draft.finish_reason and end not in SENTENCE_ENDS:
            return f"ends in {end!r}, not like a sentence"
        return None


class EchoRule:
    """Rejects an output most of which is one run of the prompt's words."""

    def __init__(self, chosen: settings.Echo) -> None:
        self._max_share = chosen.max_share
        self._min_words = chosen.min_words

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        words = words_of(draft.output)
        if len(words) < self._min_words:
            return None
        shared = longest_run(words_of(f"{draft.instruction} {draft.input}"), words)
        if shared <= self._max_share * len(words):
            return None
        return f"{shared} of its {len(words)} words are a run of the prompt"


def longest_run(first: list[str], second: list[str]) -> int:
    """Return the length of the longest run of words that two texts share."""
    best = 0
    places: dict[str, list[int]] = {}
    for place, word in enumerate(first):
        places.setdefault(word, []).append(place)
    lengths: dict[int, int] = {}
    for word in second:
        lengths = {place: lengths.get(place - 1, 0) + 1 for place in places.get(word, ())}
        best = max(best, max(lengths.values(), default=0))
    return best

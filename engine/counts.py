"""Counts of texts, in 20 bytes a text however many there are.

The latest texts are in a dictionary; when it is full their counts go into sorted arrays under 128-bit hashes, and come
back when they are asked for. Promises the counts of a `Counter`. Knows nothing of what is counted.
"""

from __future__ import annotations

import xxhash

from engine.seen import SHARE
from engine.sorted_keys import SortedKeys

RECENT_TEXTS = 1 << 15
"""Texts in the dictionary before their counts are merged, 6 MB; more where there are many, as in engine/seen.py."""


class Counts(dict[str, int]):
    """A growing table of counts. A text that was not counted has the count 0; `get` only looks at the latest texts."""

    def __init__(self, *, recent_texts: int = RECENT_TEXTS) -> None:
        super().__init__()
        self._recent_texts = self._most = recent_texts
        self._older: SortedKeys | None = None

    def __missing__(self, text: str) -> int:
        if len(self) >= self._most:
            self._merge()
        count = self[text] = self._before(text)
        return count

    def _before(self, text: str) -> int:
        return self._older.count(_key(text)) if self._older is not None else 0

    def _merge(self) -> None:
        if self._older is None:
            self._older = SortedKeys(counted=True)
        counted = [(text, count) for text, count in self.items() if count]
        self._older.put([_key(text) for text, _ in counted], [count for _, count in counted])
        self.clear()
        self._most = max(self._recent_texts, len(self._older) // SHARE)


def _key(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))

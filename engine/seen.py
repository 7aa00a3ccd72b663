"""The keys of all rows so far, exact, in about 16 bytes a key.

The latest keys are in a set; when it is full they are merged into sorted arrays, which whole batches are looked up in
at once. Promises never to forget a key and never to take one key for another. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.sorted_keys import SortedKeys

RECENT_KEYS = 1 << 16
"""Keys in the set before they are merged, 6 MB; more where there are many, so that merging costs no more for each."""
SHARE = 64
"""So many times as many keys may be merged ones."""


class SeenKeys:
    """A growing set of 16-byte keys."""

    def __init__(self, keys: Iterable[bytes] = (), *, recent_keys: int = RECENT_KEYS) -> None:
        self.recent: set[bytes] = set()
        """The latest keys, and those of the older ones that `refresh` has met again."""
        self._recent_keys = self._most = recent_keys
        self._older: SortedKeys | None = None
        for key in keys:
            self.add(key)

    def __contains__(self, key: bytes) -> bool:
        return key in self.recent or (self._older is not None and self._older.count(key) > 0)

    def add(self, key: bytes) -> None:
        """Add one key."""
        if len(self.recent) >= self._most:
            self._merge()
        self.recent.add(key)

    def refresh(self, keys: Sequence[bytes]) -> None:
        """Make `recent` hold those of the given keys that are in the set at all, so that it alone answers for them."""
        if len(self.recent) >= self._most:
            self._merge()
        if self._older is None:
            return
        fresh = [key for key in keys if key not in self.recent]
        if fresh:
            found = self._older.counts(fresh)
            self.recent.update([key for key, count in zip(fresh, found, strict=True) if count])

    def all(self) -> set[bytes]:
        """Return every key."""
        return self.recent | (self._older.all() if self._older else set())

    def _merge(self) -> None:
        if self._older is None:
            self._older = SortedKeys()
        self._older.put(list(self.recent), [1] * len(self.recent))
        self.recent.clear()
        self._most = max(self._recent_keys, len(self._older) // SHARE)

"""The keys of all rows so far, exact, in about 16 bytes a key.

The latest keys are in a set; when it is full they are merged into one sorted array, which whole batches are looked up
in at once. Promises never to forget a key and never to take one key for another. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Halves = npt.NDArray[np.uint64]

RECENT_KEYS = 1 << 17
"""Most keys in the set before they are merged: 13 MB, and merges so few that they cost little at 10 million keys."""


class SeenKeys:
    """A growing set of 16-byte keys."""

    def __init__(self, keys: Iterable[bytes] = (), *, recent_keys: int = RECENT_KEYS) -> None:
        self.recent: set[bytes] = set()
        """The latest keys, and those of the older ones that `refresh` has met again."""
        self._recent_keys = recent_keys
        self._older: _Sorted | None = None
        for key in keys:
            self.add(key)

    def __contains__(self, key: bytes) -> bool:
        self.refresh((key,))
        return key in self.recent

    def add(self, key: bytes) -> None:
        """Add one key."""
        if len(self.recent) >= self._recent_keys:
            self._merge()
        self.recent.add(key)

    def refresh(self, keys: Sequence[bytes]) -> None:
        """Make `recent` hold those of the given keys that are in the set at all, so that it alone answers for them."""
        if len(self.recent) >= self._recent_keys:
            self._merge()
        if self._older is None:
            return
        fresh = [key for key in keys if key not in self.recent]
        if fresh:
            self.recent.update([fresh[index] for index in self._older.find(*_halves(fresh))])

    def all(self) -> set[bytes]:
        """Return every key."""
        return self.recent | (self._older.all() if self._older else set())

    def _merge(self) -> None:
        high, low = _halves(list(self.recent))
        self.recent.clear()
        self._older = self._older.merged(high, low) if self._older else _Sorted.of(high, low)


class _Sorted:
    """Keys in an array, sorted by their high half."""

    def __init__(self, high: Halves, low: Halves) -> None:
        self._high, self._low = high, low

    @classmethod
    def of(cls, high: Halves, low: Halves) -> _Sorted:
        order = high.argsort()
        return cls(high[order], low[order])

    def find(self, high: Halves, low: Halves) -> list[int]:
        """Return which of some keys are here."""
        import numpy as np

        places = self._high.searchsorted(high)
        near = np.minimum(places, len(self._high) - 1)
        same_high = self._high[near] == high
        same = same_high & (self._low[near] == low)
        found: list[int] = np.flatnonzero(same).tolist()
        # Two keys with one high half: one pair in a million runs of ten million rows, and still told apart.
        for index in np.flatnonzero(same_high & ~same).tolist():
            end = int(self._high.searchsorted(high[index], side="right"))
            if low[index] in self._low[int(places[index]) : end]:
                found.append(index)
        return found

    def merged(self, high: Halves, low: Halves) -> _Sorted:
        """Return these keys and further ones."""
        import numpy as np

        new = np.ones(len(high), bool)
        new[self.find(high, low)] = False
        other = _Sorted.of(high[new], low[new])
        places = self._high.searchsorted(other._high)
        return _Sorted(np.insert(self._high, places, other._high), np.insert(self._low, places, other._low))

    def all(self) -> set[bytes]:
        import numpy as np

        return {key.tobytes() for key in np.stack((self._high, self._low), axis=1)}


def _halves(keys: Sequence[bytes]) -> tuple[Halves, Halves]:
    import numpy as np

    halves = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()

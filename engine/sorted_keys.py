"""Sorted arrays of 16-byte keys, each with a count where that is wanted: what growing sets and tables are made of.

Exact, in 16 bytes a key and 4 a count. Promises that growing needs little more memory than what is added, since one
array of one part is made anew at a time, in memory of its own that goes back whole. Knows nothing of rows.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Halves = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]
    Array = npt.NDArray[Any]

PARTS = 8
"""A power of two. More would take longer to look a batch up in."""
SHIFT = 65 - PARTS.bit_length()
"""Bits behind those of a high half that name its part."""
HALVES = struct.Struct("=QQ")


class SortedKeys:
    """A table of keys and counts; where `counted` is not set, every count is 1."""

    def __init__(self, *, counted: bool = False) -> None:
        self._parts = [_Part(counted) for _ in range(PARTS)]

    def __len__(self) -> int:
        return sum(len(part.high) for part in self._parts)

    def count(self, key: bytes) -> int:
        """Return the count of a key, 0 if it is not here."""
        high: int
        low: int
        high, low = HALVES.unpack(key)
        return self._parts[high >> SHIFT].count(high, low)

    def counts(self, keys: Sequence[bytes]) -> list[int]:
        """Return the counts of keys, 0 for one that is not here."""
        import numpy as np

        high, low = _halves(keys)
        found = np.zeros(len(keys), np.int64)
        for part, here in self._split(high):
            found[here] = part.counts_of(part.find(high[here], low[here]))
        return found.tolist()

    def put(self, keys: Sequence[bytes], counts: Sequence[int]) -> None:
        """Set the counts of keys that all differ; those that are not here are added."""
        import numpy as np

        high, low = _halves(keys)
        values = np.array(counts, np.uint32)
        for part, here in self._split(high):
            part.put(high[here], low[here], values[here])

    def all(self) -> set[bytes]:
        """Return every key."""
        import numpy as np

        both = [np.stack((part.high, part.low), axis=1) for part in self._parts]
        return {key.tobytes() for pair in both for key in pair}

    def _split(self, high: Halves) -> list[tuple[_Part, Numbers]]:
        """Return the parts that keys belong to, each with the numbers of its keys."""
        numbers = high >> SHIFT
        return [(self._parts[number], (numbers == number).nonzero()[0]) for number in set(numbers.tolist())]


class _Part:
    """The keys of one range, sorted by their high half."""

    def __init__(self, counted: bool) -> None:
        import numpy as np

        self.high: Halves = np.empty(0, np.uint64)
        self.low: Halves = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.uint32) if counted else None

    def count(self, high: int, low: int) -> int:
        """Return the count of one key: for one, bisection takes a fifth of the time of arrays."""
        highs, lows = self.high.data, self.low.data
        place = bisect_left(highs, high)
        while place < len(highs) and highs[place] == high:
            if lows[place] == low:
                return 1 if self._counts is None else int(self._counts[place])
            place += 1
        return 0

    def find(self, high: Halves, low: Halves) -> Numbers:
        """Return the places of keys, -1 for one that is not here."""
        import numpy as np

        if not len(self.high):
            return np.full(len(high), -1)
        places = self.high.searchsorted(high)
        near = np.minimum(places, len(self.high) - 1)
        same_high = self.high[near] == high
        same = same_high & (self.low[near] == low)
        found = np.where(same, near, -1)
        # Two keys with one high half: one pair in a million runs of ten million rows, and still told apart.
        for index in (same_high & ~same).nonzero()[0].tolist():
            begin, end = int(places[index]), int(self.high.searchsorted(high[index], side="right"))
            found[index] = next((place for place in range(begin, end) if self.low[place] == low[index]), -1)
        return found

    def counts_of(self, places: Numbers) -> Array:
        """Return the counts at places that were found."""
        if self._counts is None or not len(self._counts):
            return places >= 0
        return self._counts[places] * (places >= 0)

    def put(self, high: Halves, low: Halves, counts: Array) -> None:
        """Set or add counts."""
        places = self.find(high, low)
        here, new = places >= 0, places < 0
        if self._counts is not None:
            self._counts[places[here]] = counts[here]
        order = high[new].argsort()
        high, low, counts = high[new][order], low[new][order], counts[new][order]
        places = self.high.searchsorted(high)
        self.high, self.low = _inserted(self.high, places, high), _inserted(self.low, places, low)
        if self._counts is not None:
            self._counts = _inserted(self._counts, places, counts)


def _inserted(array: Array, places: Numbers, values: Array) -> Array:
    """Return an array with values put before the places given, which ascend."""
    import numpy as np

    size = len(array) + len(values)
    # Memory of its own and not the allocator's, in which arrays that only grow leave holes that they do not fit into.
    memory = mmap.mmap(-1, max(1, size * array.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    grown = np.frombuffer(memory, array.dtype, size)
    at = places + np.arange(len(values))
    old = np.ones(size, bool)
    old[at] = False
    grown[at], grown[old] = values, array
    return grown


def _halves(keys: Sequence[bytes]) -> tuple[Halves, Halves]:
    import numpy as np

    halves = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()

"""Tables of 128-bit keys for the compiled kernel (engine/native/table.py), whose memory is held here.

Exact, about 20 bytes a key. A table grows part by part, and a part in place, so that growing takes little time and no
more memory than what it adds.
"""

from __future__ import annotations

import mmap
from array import array
from typing import TYPE_CHECKING

from engine.native.kernel import SPREAD
from engine.native.table import FULL_EIGHTHS, PART_WORDS, PARTS, TAKEN
from engine.room import WORD, address_of

if TYPE_CHECKING:
    from engine.native.load import Run

FIRST_PLACES = 64
SMALL_PLACES = 1 << 10
"""A part of fewer places is doubled when it is full, a larger one grows by an eighth."""
SLOTS_BEHIND = 64
"""Slots behind the last place, for keys that are pushed on; more are added in the rare case that these are taken."""


class KeyTable:
    """A growing table."""

    def __init__(self, run: Run, width: int) -> None:
        self._run = run
        self._width = width
        """Words of a slot."""
        self._headers = array("q")
        self._slots = list[mmap.mmap]()
        for _ in range(PARTS):
            capacity = FIRST_PLACES + SLOTS_BEHIND
            # Private, as only such memory can be made larger.
            slots = mmap.mmap(-1, capacity * width * WORD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._slots.append(slots)
            self._headers.extend((address_of(slots), FIRST_PLACES, 0, capacity))
        self.address = self._headers.buffer_info()[0]

    def __len__(self) -> int:
        return sum(self._headers[TAKEN::PART_WORDS])

    def grow(self, part: int) -> bool:
        """Make room in the part whose header is at an address; False if it is another table's."""
        number, rest = divmod(part - self.address, PART_WORDS * WORD)
        if rest or not 0 <= number < PARTS:
            return False
        first = number * PART_WORDS
        _, size, taken, capacity = self._headers[first : first + PART_WORDS]
        more = SLOTS_BEHIND
        if (taken + 1) * 8 > size * FULL_EIGHTHS:
            more = size if size < SMALL_PLACES else size // 8
            size += more
        self._slots[number].resize((capacity + more) * self._width * WORD)
        self._headers[first] = address_of(self._slots[number])
        given = array("q", (part, self._width, size, capacity + more))
        self._run(SPREAD, given.buffer_info()[0])
        return True

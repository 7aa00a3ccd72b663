"""Tables of 128-bit keys for the compiled kernel (engine/native/table.py), whose memory is held here.

Exact, about 24 bytes a key. A table grows part by part, so that growing takes little time and little more memory.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from engine.native.kernel import MOVE
from engine.native.table import PART_WORDS, PARTS
from engine.room import WORD, Room

if TYPE_CHECKING:
    from engine.native.load import Run

FIRST_SLOTS = 64
SMALL_SLOTS = 1 << 14
"""A part of fewer slots is doubled when it is full, a larger one grows by half."""


class KeyTable:
    """A growing table."""

    def __init__(self, run: Run, width: int) -> None:
        self._run = run
        self._width = width
        """Words of a slot."""
        self._headers = array("q", bytes(WORD * PARTS * PART_WORDS))
        self.address = self._headers.buffer_info()[0]
        self._slots = [Room(0)] * PARTS
        for number in range(PARTS):
            self._put(number, *self._new_part(FIRST_SLOTS))

    def __len__(self) -> int:
        return sum(self._headers[2::PART_WORDS])

    def grow(self, part: int) -> bool:
        """Make room in the part whose header is at an address; False if it is another table's."""
        number, rest = divmod(part - self.address, PART_WORDS * WORD)
        if rest or not 0 <= number < PARTS:
            return False
        slots = self._headers[number * PART_WORDS + 1]
        header, room = self._new_part(slots * 2 if slots < SMALL_SLOTS else slots * 3 // 2)
        given = array("q", (part, header.buffer_info()[0], self._width))
        self._run(MOVE, given.buffer_info()[0])
        self._put(number, header, room)
        return True

    def _new_part(self, slots: int) -> tuple[array[int], Room]:
        room = Room(slots * self._width * WORD)
        return array("q", (room.address, slots, 0)), room

    def _put(self, number: int, header: array[int], room: Room) -> None:
        self._headers[number * PART_WORDS : (number + 1) * PART_WORDS] = header
        self._slots[number] = room

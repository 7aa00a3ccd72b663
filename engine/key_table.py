"""Tables of 128-bit keys for the compiled kernel (engine/native/table.py), whose memory is held here.

Exact, about 24 bytes a key. A table grows part by part, so that growing takes little time and little more memory.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

from engine.native.kernel import MOVE
from engine.native.table import PART_WORDS, PARTS

if TYPE_CHECKING:
    from engine.native.load import Run

FIRST_SLOTS = 64
SMALL_SLOTS = 1 << 14
"""A part of fewer slots is doubled when it is full, a larger one grows by half."""
WORD = 8


class KeyTable:
    """A growing table."""

    def __init__(self, run: Run, width: int) -> None:
        self._run = run
        self._width = width
        """Words of a slot."""
        self._headers = np.zeros((PARTS, PART_WORDS), np.int64)
        self._slots: list[mmap.mmap | None] = [None] * PARTS
        self.address = self._headers.ctypes.data
        for number in range(PARTS):
            self._put(number, self._new_part(FIRST_SLOTS))

    def __len__(self) -> int:
        return int(self._headers[:, 2].sum())

    def grow(self, part: int) -> bool:
        """Make room in the part whose header is at an address; False if it is another table's."""
        number, rest = divmod(part - self.address, PART_WORDS * WORD)
        if rest or not 0 <= number < PARTS:
            return False
        slots = int(self._headers[number, 1])
        header, memory = self._new_part(slots * 2 if slots < SMALL_SLOTS else slots * 3 // 2)
        given = np.array([part, header.ctypes.data, self._width], np.int64)
        self._run(MOVE, given.ctypes.data)
        self._put(number, (header, memory))
        return True

    def _new_part(self, slots: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], mmap.mmap]:
        # Memory of its own and not the allocator's: it goes back whole, so that what grew does not stay behind.
        memory = mmap.mmap(-1, slots * self._width * WORD)
        address = np.frombuffer(memory, np.uint8).ctypes.data
        return np.array([address, slots, 0], np.int64), memory

    def _put(self, number: int, part: tuple[np.ndarray[tuple[int], np.dtype[np.int64]], mmap.mmap]) -> None:
        self._headers[number], self._slots[number] = part

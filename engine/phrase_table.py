"""The phrase list laid out for the compiled kernel (engine/native/phrases.py)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from engine.native.phrases import (
    BUCKET_BITS,
    ENTRY_WORDS,
    FACTOR,
    LOWER,
    WIDE_FACTOR,
    WIDE_LOWER,
    WIDE_SIZE,
)
from engine.room import Room

GROUP = 4
"""Bytes of a group, unless a phrase is shorter."""
STEP = 4
"""Bytes from one group to the next, unless a phrase is too short for that."""
_BY_FREQUENCY = b" etaoinsrhldcumfpgwybvkxjqz"
_RARE = len(_BY_FREQUENCY)


class PhraseTable:
    """Lower-cased phrases, in list order."""

    def __init__(self, phrases: Sequence[bytes]) -> None:
        shortest = min(map(len, phrases))
        size = min(GROUP, shortest)
        step = min(STEP, shortest - size + 1)
        narrow, wide = _Map(), _Map()
        entries: list[int] = []
        for number, phrase in enumerate(phrases):
            is_long = size == GROUP and len(phrase) >= WIDE_SIZE + step - 1
            length = WIDE_SIZE if is_long else size
            begin = _rarest_window(phrase, length + step - 1)
            for place in range(begin, begin + step):
                slot = _slot(phrase[place : place + size])
                narrow.mark(slot)
                where = wide if is_long else narrow
                if is_long:
                    slot = _wide_slot(phrase[place : place + WIDE_SIZE])
                    wide.mark(slot)
                entries += (number, place, where.push(slot, len(entries) // ENTRY_WORDS + 1))
        text, place = Room.of(b"".join(phrases)), 0
        places = array("q")
        for phrase in phrases:
            places.extend((text.address + place, len(phrase)))
            place += len(phrase)
        beyond = int(any(not phrase.isascii() for phrase in phrases))
        numbers = array("q", entries)
        addresses = [kept.buffer_info()[0] for kept in (narrow.bits, narrow.heads, numbers, places)]
        wider = [kept.buffer_info()[0] for kept in (wide.bits, wide.heads)]
        self._kept = (narrow, wide, numbers, text, places)
        self._header = array("q", [size, step, (1 << 8 * size) - 1, *addresses, beyond, *wider])
        self.address = self._header.buffer_info()[0]


class _Map:
    """Which hashes there are, and the first entry of each bucket of them."""

    def __init__(self) -> None:
        self.bits = array("B", bytes(1 << (BUCKET_BITS + 4 - 3)))
        self.heads = array("q", bytes(8 << BUCKET_BITS))

    def mark(self, slot: int) -> None:
        self.bits[slot >> 3] |= 1 << (slot & 7)

    def push(self, slot: int, entry: int) -> int:
        """Put an entry before the others of its bucket; return which was the first."""
        before = self.heads[slot >> 4]
        self.heads[slot >> 4] = entry
        return before


def _wide_slot(group: bytes) -> int:
    return ((int.from_bytes(group, "little") | WIDE_LOWER) * WIDE_FACTOR & 0xFFFFFFFFFFFFFFFF) >> 47


def _slot(group: bytes) -> int:
    """Return what `engine.native.phrases.group_hash` does of a group of a text."""
    word = int.from_bytes(group, "little")
    mask = (1 << 8 * len(group)) - 1
    return (((word | LOWER) & mask) * FACTOR & 0xFFFFFFFF) >> 15


def _rarest_window(phrase: bytes, length: int) -> int:
    """Return where in a phrase a window begins whose letters are the rarest, so that few texts hold its groups."""
    ranks = [_BY_FREQUENCY.find(byte) if byte in _BY_FREQUENCY else _RARE for byte in phrase]
    return max(range(len(phrase) - length + 1), key=lambda begin: sum(ranks[begin : begin + length]))

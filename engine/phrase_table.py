"""The phrase list laid out for the compiled kernel (engine/native/phrases.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.native.phrases import (
    BUCKET_BITS,
    ENTRY_WORDS,
    FACTOR,
    LOWER,
    TEXT_WORDS,
    WIDE_FACTOR,
    WIDE_LOWER,
    WIDE_SIZE,
)

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
        self._kept: list[Any] = [narrow, wide, np.array(entries, np.int64)]
        text = np.frombuffer(b"".join(phrases), np.uint8)
        ends = np.cumsum([len(phrase) for phrase in phrases])
        places = np.zeros((len(phrases), TEXT_WORDS), np.int64)
        places[:, 1] = [len(phrase) for phrase in phrases]
        places[:, 0] = text.ctypes.data + ends - places[:, 1]
        self._kept += [text, places]
        beyond = int(any(not phrase.isascii() for phrase in phrases))
        addresses = [kept.ctypes.data for kept in (narrow.bits, narrow.heads, self._kept[2], places)]
        wider = [wide.bits.ctypes.data, wide.heads.ctypes.data]
        self._header = np.array([size, step, (1 << 8 * size) - 1, *addresses, beyond, *wider], np.int64)
        self.address = self._header.ctypes.data


class _Map:
    """Which hashes there are, and the first entry of each bucket of them."""

    def __init__(self) -> None:
        self.bits = np.zeros(1 << (BUCKET_BITS + 4 - 3), np.uint8)
        self.heads = np.zeros(1 << BUCKET_BITS, np.int64)

    def mark(self, slot: int) -> None:
        self.bits[slot >> 3] |= 1 << (slot & 7)

    def push(self, slot: int, entry: int) -> int:
        """Put an entry before the others of its bucket; return which was the first."""
        before = int(self.heads[slot >> 4])
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

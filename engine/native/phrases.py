"""Which of many phrases a text holds, ASCII case aside: the first in list order.

Every phrase has a window in which, wherever the phrase stands, one group of `size` bytes lies at a multiple of `step`
from the text's begin. So only those groups of a text are looked up, in a bit map that few pass; of a phrase that is
long enough, twice as many bytes are looked up then. What passes both is compared byte by byte.
`engine/phrase_table.py` lays the tables out.
"""

from __future__ import annotations

from typing import Any

from engine.native.memory import load8, load32, load64, u64, word

LOWER = 0x20202020
"""Folds the case of four ASCII letters at once (and some other bytes, which the comparison tells apart)."""
WIDE_LOWER = 0x2020202020202020
FACTOR = 0x9E3779B1
WIDE_FACTOR = 0x9E3779B185EBCA87
WIDE_SIZE = 8
SIZE, STEP, MASK, BITS, HEADS, ENTRIES, TEXTS, ANY_BEYOND, WIDE_BITS, WIDE_HEADS = range(10)
"""Words of the table's header; ANY_BEYOND: some phrase has letters beyond ASCII, whose case is not folded."""
BUCKET_BITS = 13
ENTRY_WORDS = 3
"""Of one entry: the phrase's number, how far into it the group begins, and the bucket's next entry (from 1)."""
TEXT_WORDS = 2
"""Of one phrase: where its lower-cased text is and how long it is."""
NONE, SUSPECT = -1, -2


def group_hash(group: int) -> int:
    """Return where a group of bytes is in the bit map; its upper bits name the bucket."""
    return ((group & 0xFFFFFFFF) * FACTOR & 0xFFFFFFFF) >> 15


def wide_hash(group: Any) -> int:
    """Return the same of a group of eight bytes."""
    return int((group | u64(WIDE_LOWER)) * u64(WIDE_FACTOR) >> u64(47))


def first_phrase(table: int, start: int, end: int) -> int:
    """Return the number of the first phrase that a text holds, or NONE."""
    step, mask = word(table + 8 * STEP), word(table + 8 * MASK)
    bits, last = word(table + 8 * BITS), end - word(table + 8 * SIZE)
    best, place = NONE, start
    while place <= last:
        slot = group_hash((load32(place) | LOWER) & mask)
        if load8(bits + (slot >> 3)) >> (slot & 7) & 1:
            best = _confirm(table, word(word(table + 8 * HEADS) + 8 * (slot >> 4)), place, start, end, best)
            slot = wide_hash(load64(place))
            if load8(word(table + 8 * WIDE_BITS) + (slot >> 3)) >> (slot & 7) & 1:
                best = _confirm(table, word(word(table + 8 * WIDE_HEADS) + 8 * (slot >> 4)), place, start, end, best)
        place += step
    return best


def _confirm(table: int, entry: int, place: int, start: int, end: int, best: int) -> int:
    entries, texts = word(table + 8 * ENTRIES), word(table + 8 * TEXTS)
    while entry:
        at = entries + 8 * ENTRY_WORDS * (entry - 1)
        number, begin = word(at), place - word(at + 8)
        if best < 0 or number < best:
            phrase = word(texts + 8 * TEXT_WORDS * number)
            length = word(texts + 8 * TEXT_WORDS * number + 8)
            if begin >= start and begin + length <= end and _same(begin, phrase, length):
                best = number
        entry = word(at + 16)
    return best


def _same(place: int, phrase: int, length: int) -> bool:
    for at in range(length):
        byte = load8(place + at)
        if 65 <= byte <= 90:
            byte += 32
        if byte != load8(phrase + at):
            return False
    return True


def folds_to_ascii(start: int, end: int) -> bool:
    """Say whether a text holds a Kelvin sign or a dotted capital I, whose lower case begins with an ASCII letter."""
    for place in range(start, end - 1):
        byte = load8(place)
        if byte == 0xC4 and load8(place + 1) == 0xB0:
            return True
        if byte == 0xE2 and load8(place + 1) == 0x84 and load8(place + 2) == 0xAA:
            return True
    return False


def cut(start: int, end: int, chars: int) -> int:
    """Return the end of a text's first characters."""
    while start < end and chars > 0:
        start += 1
        while start < end and load8(start) & 0xC0 == 0x80:
            start += 1
        chars -= 1
    return start

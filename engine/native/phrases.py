"""Which of many phrases a text holds, ASCII case aside: the first in list order.

Every phrase has a window in which, wherever the phrase stands, one group of `size` bytes lies at a multiple of `step`
from the text's begin. So only those groups of a text are looked up, in a bit map that few pass; what passes is compared
byte by byte. `engine/filter_native.py` lays the tables out.
"""

from __future__ import annotations

from engine.native.memory import load8, load32, word

LOWER = 0x20202020
"""Folds the case of four ASCII letters at once (and some other bytes, which the comparison tells apart)."""
FACTOR = 0x9E3779B1
SIZE, STEP, MASK, BITS, HEADS, ENTRIES, TEXTS, ANY_BEYOND = range(8)
"""Words of the table's header; the last says that some phrase has letters beyond ASCII, whose case is not folded."""
BUCKET_BITS = 13
ENTRY_WORDS = 3
"""Of one entry: the phrase's number, how far into it the group begins, and the bucket's next entry (from 1)."""
TEXT_WORDS = 2
"""Of one phrase: where its lower-cased text is and how long it is."""
NONE, SUSPECT = -1, -2


def group_hash(group: int) -> int:
    """Return where a group of bytes is in the bit map; its upper bits name the bucket."""
    return ((group & 0xFFFFFFFF) * FACTOR & 0xFFFFFFFF) >> 15


def first_phrase(table: int, start: int, end: int) -> int:
    """Return the number of the first phrase that a text holds, or NONE."""
    step, mask = word(table + 8 * STEP), word(table + 8 * MASK)
    bits, last = word(table + 8 * BITS), end - word(table + 8 * SIZE)
    best, place = NONE, start
    while place <= last:
        slot = group_hash((load32(place) | LOWER) & mask)
        if load8(bits + (slot >> 3)) >> (slot & 7) & 1:
            best = _confirm(table, slot >> 4, place, start, end, best)
        place += step
    return best


def _confirm(table: int, bucket: int, place: int, start: int, end: int, best: int) -> int:
    entries, texts = word(table + 8 * ENTRIES), word(table + 8 * TEXTS)
    entry = word(word(table + 8 * HEADS) + 8 * bucket)
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

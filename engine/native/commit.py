"""Rows in order -> verdicts, and the bytes that are written for them. What remembers rows is only touched here."""

from __future__ import annotations

from engine.native.lines import (
    BAD,
    BRACE,
    CAP,
    CAP_LOW,
    CHARS,
    KEY,
    KEY_LOW,
    LINE,
    MARK,
    MARKED,
    NEXT,
    PHRASE,
    READ,
    ROW_WORDS,
    STATE,
    TOPIC,
    TOPIC_END,
    VERDICT,
)
from engine.native.memory import BACKSLASH, QUOTE, copy, load8, load64, put_word, store8, u64, word
from engine.native.table import find, holds, is_full, part_of, put
from engine.native.text import first_words

ROWS, FIRST, COUNT, SEEN, CAPS, SHORTEST, LONGEST, LIMIT, FULL_PART, COUNTS = range(10)
"""Words of the parameters of `judge`."""
G_ROWS, G_COUNT, G_KEPT, G_REJECTED, G_MARKS, G_NUMBER, G_WORDS, G_KEPT_END, G_REJECTED_END = range(9)
"""Words of the parameters of `gather`; G_WORDS: so many words of the instruction name a cap, or, at 0, the template."""
NOT_A_ROW, KEPT, DUPLICATE, LENGTH, BANNED, FULL = range(6)
"""Verdicts; `judge` counts them."""
BESIDE_OWN = FULL + 1
"""Behind these counts: rejected rows with a field that is called like a mark."""
UNMARKED = -1
"""The mark of a rejected row whose mark is made by the caller."""
BEFORE_TOPIC, BEHIND_TOPIC = 1, 2
"""Marks that go around the name of a cap, where that can be written as it is."""
KEY_WIDTH, COUNT_WIDTH = 2, 3
"""Words of a slot of the two tables."""


def judge(q: int) -> int:
    """Judge rows from one on; return how far it came, which is short of the end where a part of a table must grow."""
    first, count = word(q + 8 * FIRST), word(q + 8 * COUNT)
    for number in range(first, count):
        row = word(q + 8 * ROWS) + 8 * ROW_WORDS * number
        state = word(row + 8 * STATE)
        if state in (READ, MARKED):
            verdict = _judge_row(q, row)
            if verdict == NOT_A_ROW:
                return number
            put_word(row + 8 * VERDICT, verdict)
            _count(q, verdict)
            if verdict > KEPT and state == MARKED:
                _count(q, BESIDE_OWN)
            if verdict > DUPLICATE:
                is_plain = verdict == FULL and _is_plain(word(row + 8 * TOPIC), word(row + 8 * TOPIC_END))
                put_word(row + 8 * MARK, BEFORE_TOPIC if is_plain else UNMARKED)
    return count


def _count(q: int, what: int) -> int:
    counter = word(q + 8 * COUNTS) + 8 * what
    put_word(counter, word(counter) + 1)
    return 0


def _judge_row(q: int, row: int) -> int:
    high, low, limit = load64(row + 8 * KEY), load64(row + 8 * KEY_LOW), word(q + 8 * LIMIT)
    if high == u64(0) and low == u64(0):
        low = u64(1)
    part = part_of(word(q + 8 * SEEN), high)
    if is_full(part, KEY_WIDTH):
        put_word(q + 8 * FULL_PART, part)
        return NOT_A_ROW
    cap_high, cap_low = load64(row + 8 * CAP), load64(row + 8 * CAP_LOW)
    if cap_high == u64(0) and cap_low == u64(0):
        cap_low = u64(1)
    caps = part_of(word(q + 8 * CAPS), cap_high)
    if limit > 0 and is_full(caps, COUNT_WIDTH):
        put_word(q + 8 * FULL_PART, caps)
        return NOT_A_ROW
    slot = find(part, KEY_WIDTH, high, low)
    if holds(slot, high, low):
        return DUPLICATE
    put(part, KEY_WIDTH, slot, high, low)
    chars = word(row + 8 * CHARS)
    if chars < word(q + 8 * SHORTEST) or chars > word(q + 8 * LONGEST):
        return LENGTH
    if word(row + 8 * PHRASE) >= 0:
        return BANNED
    if limit > 0:
        slot = find(caps, COUNT_WIDTH, cap_high, cap_low)
        if not holds(slot, cap_high, cap_low):
            put(caps, COUNT_WIDTH, slot, cap_high, cap_low)
        if word(slot + 16) >= limit:
            return FULL
        put_word(slot + 16, word(slot + 16) + 1)
    return KEPT


def gather(q: int) -> int:
    """Write kept lines one behind the other, and rejected ones with their marks and numbers."""
    kept, rejected, number = word(q + 8 * G_KEPT), word(q + 8 * G_REJECTED), word(q + 8 * G_NUMBER)
    row, begin, end = word(q + 8 * G_ROWS), 0, 0
    for _ in range(word(q + 8 * G_COUNT)):
        verdict, state = word(row + 8 * VERDICT), word(row + 8 * STATE)
        if verdict == KEPT:
            if word(row + 8 * LINE) != end:
                kept = copy(kept, begin, end - begin)
                begin = word(row + 8 * LINE)
            end = word(row + 8 * NEXT)
        elif verdict != NOT_A_ROW:
            rejected = copy(rejected, word(row + 8 * LINE), word(row + 8 * BRACE) - word(row + 8 * LINE))
            rejected = _put_mark(q, rejected, word(row + 8 * MARK))
            if verdict == FULL and word(row + 8 * MARK) == BEFORE_TOPIC:
                rejected = _put_topic(q, rejected, word(row + 8 * TOPIC), word(row + 8 * TOPIC_END))
                rejected = _put_mark(q, rejected, BEHIND_TOPIC)
            rejected = _put_number(rejected, number)
            store8(rejected, 125)  # }
            store8(rejected + 1, 10)
            rejected += 2
        if state in (READ, MARKED, BAD):
            number += 1
        row += 8 * ROW_WORDS
    put_word(q + 8 * G_KEPT_END, copy(kept, begin, end - begin))
    put_word(q + 8 * G_REJECTED_END, rejected)
    put_word(q + 8 * G_NUMBER, number)
    return 0


def _put_mark(q: int, target: int, number: int) -> int:
    mark = word(q + 8 * G_MARKS) + 16 * number
    return copy(target, word(mark), word(mark + 8))


def _put_topic(q: int, target: int, start: int, end: int) -> int:
    words = word(q + 8 * G_WORDS)
    return first_words(target, start, end, words) if words else copy(target, start, end - start)


def _is_plain(start: int, end: int) -> bool:
    """Say whether a text reads the same in JSON and in quotes."""
    if start == 0:
        return False
    for place in range(start, end):
        byte = load8(place)
        if byte < 32 or byte > 126 or byte in (QUOTE, BACKSLASH, 39):
            return False
    return True


def _put_number(target: int, number: int) -> int:
    size, rest = 1, number // 10
    while rest:
        rest //= 10
        size += 1
    for place in range(size - 1, -1, -1):
        store8(target + place, 48 + number % 10)
        number //= 10
    return target + size

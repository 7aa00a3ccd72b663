"""JSON strings in UTF-8: where they end, what they say, their white space, their words.

Strict: what is doubtful (a lone surrogate, a control character, a torn sequence) is refused with a negative number,
and the caller leaves its line to the JSON decoder.
"""

from __future__ import annotations

from engine.native.memory import BACKSLASH, QUOTE, WIDE, copy, load8, lowest, odd_bytes, store8

ESCAPED, BEYOND = 1, 2
"""Kinds of strings: with escapes; with characters beyond ASCII."""
SEPARATOR = 0x1F
"""Stands between the texts of a duplicate key; a text that holds it is refused."""


def string_end(start: int) -> tuple[int, int, int]:
    """Return where the string ends whose text begins at `start` (its closing quote), or -1.

    Beside it: how many fewer characters than raw bytes it has, and its kinds.
    """
    place, extra, kinds = start, 0, 0
    while True:
        odd = odd_bytes(place)
        if odd == 0:
            place += WIDE
            continue
        place += lowest(odd)
        byte = load8(place)
        if byte == QUOTE:
            return place, extra, kinds
        if byte == BACKSLASH:
            size = escape_size(place)
            kinds |= ESCAPED if size == 2 else ESCAPED | BEYOND
        elif byte >= 0x80:
            size = sequence_size(place)
            kinds |= BEYOND
        else:
            return -1, extra, kinds
        if size == 0:
            return -1, extra, kinds
        place += size
        extra += size - 1


def sequence_size(place: int) -> int:
    """Return the bytes of the UTF-8 character beyond ASCII that begins here, or 0."""
    first, second = load8(place), load8(place + 1)
    if second & 0xC0 != 0x80 or first < 0xC2:
        return 0
    if first < 0xE0:
        return 2
    if load8(place + 2) & 0xC0 != 0x80:
        return 0
    if first < 0xF0:
        return 0 if (first == 0xE0 and second < 0xA0) or (first == 0xED and second >= 0xA0) else 3
    if load8(place + 3) & 0xC0 != 0x80 or first > 0xF4:
        return 0
    return 0 if (first == 0xF0 and second < 0x90) or (first == 0xF4 and second >= 0x90) else 4


def escape_size(place: int) -> int:
    """Return the bytes of the escape that begins here, a pair of surrogates being one, or 0."""
    kind = load8(place + 1)
    if kind != 117:  # u
        return 2 if _plain(kind) >= 0 else 0
    code = _hex4(place + 2)
    if code < 0 or 0xDC00 <= code < 0xE000:
        return 0
    if code < 0xD800 or code >= 0xE000:
        return 6
    if load8(place + 6) != BACKSLASH or load8(place + 7) != 117:
        return 0
    return 12 if 0xDC00 <= _hex4(place + 8) < 0xE000 else 0


def _plain(kind: int) -> int:
    """Return what a letter behind a backslash stands for, or -1."""
    if kind in (QUOTE, BACKSLASH, 47):
        return kind
    if kind == 110:
        return 10
    if kind == 116:
        return 9
    if kind == 114:
        return 13
    if kind == 98:
        return 8
    return 12 if kind == 102 else -1


def _hex4(place: int) -> int:
    code = 0
    for at in range(4):
        digit = load8(place + at)
        if 48 <= digit <= 57:
            code = code << 4 | digit - 48
        elif 97 <= digit | 0x20 <= 102:
            code = code << 4 | (digit | 0x20) - 87
        else:
            return -1
    return code


def decode(target: int, start: int, end: int) -> int:
    """Write what a valid string with escapes says; return where it ends, or -1 if it holds a separator."""
    place = start
    while place < end:
        byte = load8(place)
        if byte != BACKSLASH:
            store8(target, byte)
            place += 1
            target += 1
            continue
        size = escape_size(place)
        if size == 2:
            target = _encode(target, _plain(load8(place + 1)))
        else:
            code = _hex4(place + 2)
            if size == 12:
                code = 0x10000 + (code - 0xD800 << 10) + _hex4(place + 8) - 0xDC00
            if code == SEPARATOR:
                return -1
            target = _encode(target, code)
        place += size
    return target


def _encode(target: int, code: int) -> int:
    if code < 0x80:
        store8(target, code)
        return target + 1
    if code < 0x800:
        store8(target, 0xC0 | code >> 6)
        store8(target + 1, 0x80 | code & 0x3F)
        return target + 2
    if code < 0x10000:
        store8(target, 0xE0 | code >> 12)
        store8(target + 1, 0x80 | code >> 6 & 0x3F)
        store8(target + 2, 0x80 | code & 0x3F)
        return target + 3
    store8(target, 0xF0 | code >> 18)
    store8(target + 1, 0x80 | code >> 12 & 0x3F)
    store8(target + 2, 0x80 | code >> 6 & 0x3F)
    store8(target + 3, 0x80 | code & 0x3F)
    return target + 4


def space_size(place: int) -> int:
    """Return the bytes of the white space (in the sense of `str.isspace`) that begins here, or 0."""
    byte = load8(place)
    if byte < 0x80:
        return 1 if byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31 else 0
    second = load8(place + 1)
    if byte == 0xC2:
        return 2 if second in (0x85, 0xA0) else 0
    third = load8(place + 2)
    if byte == 0xE2:
        if second == 0x80:
            return 3 if third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF else 0
        return 3 if second == 0x81 and third == 0x9F else 0
    if byte == 0xE1:
        return 3 if second == 0x9A and third == 0x80 else 0
    return 3 if byte == 0xE3 and second == 0x80 and third == 0x80 else 0


def strip(start: int, end: int) -> tuple[int, int]:
    """Return a text's bounds without the white space at its ends."""
    while start < end:
        size = space_size(start)
        if size == 0:
            break
        start += size
    while start < end:
        size = 1
        while size < 4 and load8(end - size) & 0xC0 == 0x80:
            size += 1
        if space_size(end - size) != size:
            break
        end -= size
    return start, end


def first_words(target: int, start: int, end: int, most: int) -> int:
    """Write a text's first words with one space between; return where they end."""
    place, words, begin = start, 0, target
    while place < end and words < most:
        size = space_size(place)
        if size:
            place += size
            continue
        if target > begin:
            store8(target, 32)
            target += 1
        words += 1
        while place < end:
            byte = load8(place)
            # Most bytes are ASCII above the space, of which none needs a closer look.
            if (byte <= 32 or byte >= 0x80) and space_size(place):
                break
            store8(target, byte)
            target += 1
            place += 1
    return target


def append(target: int, start: int, end: int) -> int:
    """Copy a text; return where the copy ends."""
    return copy(target, start, end - start)

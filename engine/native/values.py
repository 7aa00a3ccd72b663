"""JSON values of any kind: where they end. Strict, like `text`; a number with an exponent is refused, too."""

from __future__ import annotations

from engine.native.memory import QUOTE, load8, load32
from engine.native.text import string_end

_DEEPEST = 60
_LONGEST_NUMBER = 18


def skip(place: int) -> int:
    """Return where the white space that begins here, if any, ends."""
    while True:
        byte = load8(place)
        if byte > 32 or byte not in (32, 9, 13):
            return place
        place += 1


def value_end(place: int) -> int:
    """Return where a value that is no string of interest ends, or -1."""
    kinds, depth = 0, 0
    while True:
        byte = load8(place)
        if byte in (123, 91):
            if depth == _DEEPEST:
                return -1
            depth += 1
            kinds = kinds << 1 | (1 if byte == 123 else 0)
            place = skip(place + 1)
            if load8(place) != byte + 2:  # } and ] are two behind { and [
                if kinds & 1:
                    place = _key_end(place)
                    if place < 0:
                        return -1
                continue
            depth -= 1
            kinds >>= 1
            place += 1
        else:
            place = _scalar_end(place, byte)
            if place < 0:
                return -1
        more = False
        while depth and not more:
            place = skip(place)
            byte = load8(place)
            if byte == 44:
                place = skip(place + 1)
                if kinds & 1:
                    place = _key_end(place)
                    if place < 0:
                        return -1
                more = True
            elif byte == (125 if kinds & 1 else 93):
                depth -= 1
                kinds >>= 1
                place += 1
            else:
                return -1
        if not more:
            return place


def _key_end(place: int) -> int:
    """Return where the value behind a key begins, or -1."""
    if load8(place) != QUOTE:
        return -1
    end, _, _ = string_end(place + 1)
    if end < 0:
        return -1
    place = skip(end + 1)
    return skip(place + 1) if load8(place) == 58 else -1


def _scalar_end(place: int, byte: int) -> int:
    if byte == QUOTE:
        end, _, _ = string_end(place + 1)
        return end + 1 if end >= 0 else -1
    if byte == 116:
        return place + 4 if load32(place) == 0x65757274 else -1  # true
    if byte == 110:
        return place + 4 if load32(place) == 0x6C6C756E else -1  # null
    if byte == 102:
        return place + 5 if load32(place + 1) == 0x65736C61 else -1  # false
    return _number_end(place, byte)


def _number_end(place: int, byte: int) -> int:
    """Return where a number of few digits and no exponent ends, or -1."""
    start = place
    if byte == 45:
        place += 1
    first = place
    while 48 <= load8(place) <= 57:
        place += 1
    if place == first or (place > first + 1 and load8(first) == 48):
        return -1
    if load8(place) == 46:
        first = place + 1
        place = first
        while 48 <= load8(place) <= 57:
            place += 1
        if place == first:
            return -1
    byte = load8(place) | 0x20
    return -1 if byte == 101 or place - start > _LONGEST_NUMBER else place

"""Hash tables of 128-bit keys in 64 parts, each of which grows by itself and in place, so that no growth needs memory.

A part is an array of slots in the order of their keys' low halves. A key's place is proportional to that half; where
the place is taken, larger keys stand one slot further each, so a search ends at the first larger key, and a part that
is nearly full is searched as fast as one that is half empty. A slot is a key's two halves and, in a table of counts,
the count. An empty slot is zero, so the one key that is zero is taken for 1. Nothing is allocated here: the caller
grows a part that is full.
"""

from __future__ import annotations

from typing import Any

from engine.native.memory import high_product, load64, put_word, store64, u64, word

PARTS = 64
SLOTS, SIZE, TAKEN, CAPACITY, PART_WORDS = range(5)
"""Words of a part's header: where its slots are, how many places there are for keys, how many are taken, and how many
slots there are with those behind the last place."""
FULL_EIGHTHS = 7
"""A part is full when so many eighths of its places are taken."""


def part_of(table: int, high: Any) -> int:
    """Return the header of the part that a key belongs to."""
    return table + 8 * PART_WORDS * int(high >> u64(58))


def find(part: int, width: int, high: Any, low: Any) -> int:
    """Return the slot that holds a key, or the one where it belongs."""
    slot = word(part) + 8 * width * int(high_product(low, u64(word(part + 8 * SIZE))))
    while True:
        found, other = load64(slot), load64(slot + 8)
        if other >= low and (other > low or found >= high):
            return slot
        if found == u64(0) and other == u64(0):
            return slot
        slot += 8 * width


def holds(slot: int, high: Any, low: Any) -> bool:
    """Say whether a slot holds a key."""
    return bool(load64(slot) == high and load64(slot + 8) == low)


def is_free(slot: int) -> bool:
    """Say whether a slot is empty."""
    return bool(load64(slot) == u64(0) and load64(slot + 8) == u64(0))


def put(part: int, width: int, slot: int, high: Any, low: Any) -> int:
    """Put a key that is not there into the slot where it belongs."""
    end = slot
    while not is_free(end):
        end += 8 * width
    while end > slot:
        end -= 8
        put_word(end + 8 * width, word(end))
    store64(slot, high)
    store64(slot + 8, low)
    if width > 2:
        put_word(slot + 16, 0)
    put_word(part + 8 * TAKEN, word(part + 8 * TAKEN) + 1)
    return 0


def is_full(part: int, width: int) -> bool:
    """Say whether a part must grow before it takes another key: it is crowded, or its last slot is taken."""
    if (word(part + 8 * TAKEN) + 1) * 8 > word(part + 8 * SIZE) * FULL_EIGHTHS:
        return True
    return not is_free(word(part) + 8 * width * (word(part + 8 * CAPACITY) - 1))


def spread(part: int, width: int, size: int, capacity: int) -> int:
    """Make use of more slots, which are there already: all keys go to the end, and from there to their places."""
    slots, step = word(part), 8 * width
    source, end = slots + step * word(part + 8 * CAPACITY), slots + step * capacity
    target = end
    while source > slots:
        source -= step
        if not is_free(source):
            target -= step
            _copy(target, source, width)
    source, target = target, slots
    while source < end:
        place = slots + step * int(high_product(load64(source + 8), u64(size)))
        while target < place:
            target = _clear(target, width)
        target = _copy(target, source, width)
        source += step
    while target < end:
        target = _clear(target, width)
    put_word(part + 8 * SIZE, size)
    put_word(part + 8 * CAPACITY, capacity)
    return 0


def _copy(target: int, source: int, width: int) -> int:
    for number in range(width):
        put_word(target + 8 * number, word(source + 8 * number))
    return target + 8 * width


def _clear(slot: int, width: int) -> int:
    for number in range(width):
        put_word(slot + 8 * number, 0)
    return slot + 8 * width

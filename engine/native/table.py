"""Hash tables of 128-bit keys in 64 parts, each of which grows by itself, so that no growth needs much more memory.

A part is an array of slots, with linear probing; a slot is a key's two halves and, in a table of counts, the count. An
empty slot is zero, so the one key that is zero is taken for 1. Nothing is allocated here: the caller grows a part
that is full.
"""

from __future__ import annotations

from typing import Any

from engine.native.memory import high_product, load64, put_word, store64, u64, word

PARTS = 64
PART_WORDS = 3
"""Words of a part's header: where its slots are, how many they are, how many are taken."""
FULL_EIGHTHS = 6
"""A part is full when so many eighths of its slots are taken."""


def part_of(table: int, high: Any) -> int:
    """Return the header of the part that a key belongs to."""
    return table + 8 * PART_WORDS * int(high >> u64(58))


def find(part: int, width: int, high: Any, low: Any) -> int:
    """Return the slot that holds a key, or the free slot where it belongs."""
    slots, size = word(part), word(part + 8)
    place = int(high_product(low, u64(size)))
    while True:
        slot = slots + 8 * width * place
        found = load64(slot)
        other = load64(slot + 8)
        if (found == high and other == low) or (found == u64(0) and other == u64(0)):
            return slot
        place += 1
        if place == size:
            place = 0


def is_free(slot: int) -> bool:
    """Say whether a slot is empty."""
    return bool(load64(slot) == u64(0) and load64(slot + 8) == u64(0))


def take(part: int, slot: int, high: Any, low: Any) -> int:
    """Put a key into a free slot."""
    store64(slot, high)
    store64(slot + 8, low)
    put_word(part + 16, word(part + 16) + 1)
    return slot


def is_full(part: int) -> bool:
    """Say whether a part must grow before it takes another key."""
    return (word(part + 16) + 1) * 8 > word(part + 8) * FULL_EIGHTHS


def move(old: int, new: int, width: int) -> int:
    """Fill an empty part with what another holds."""
    slots = word(old)
    for place in range(word(old + 8)):
        slot = slots + 8 * width * place
        if not is_free(slot):
            high, low = load64(slot), load64(slot + 8)
            target = take(new, find(new, width, high, low), high, low)
            if width > 2:
                put_word(target + 16, word(slot + 16))
    return 0

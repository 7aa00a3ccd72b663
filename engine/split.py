"""The split: which rows are learnt from and which are held out, the same in training and in every export.

Promises that rows which ask the same thing stand on the same side, and that a row's side is a function of the seed and
of what it asks: not of its place, of the other rows, or of how many there are. So it takes no memory.
"""

from __future__ import annotations

import unicodedata

import xxhash

from engine.rows import hash_id


def group_of(question: str) -> str:
    """Return the id of a question's group: equal where questions are, but for case, width and spaces."""
    return hash_id(normalised(question))


def normalised(text: str) -> str:
    """Return what two askings of the same thing have in common: NFKC, case folded, runs of spaces as one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def held_out(group: str, *, val_fraction: float, seed: int) -> bool:
    """Say whether a group is for validation; about `val_fraction` of all groups are."""
    return xxhash.xxh3_64_intdigest(f"{seed}\x1f{group}".encode()) / 2**64 < val_fraction

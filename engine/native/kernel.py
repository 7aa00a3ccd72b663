"""The one function that is compiled: it does what its first argument names."""

from __future__ import annotations

from engine.native.commit import gather, judge
from engine.native.hash128 import digest
from engine.native.lines import find, scan
from engine.native.memory import put_word, signed, word
from engine.native.table import spread

SCAN, JUDGE, GATHER, SPREAD, FIND, DIGEST = range(6)


def run(work: int, q: int) -> int:
    """Do one piece of work with the parameters at an address."""
    if work == SCAN:
        return scan(q)
    if work == JUDGE:
        return judge(q)
    if work == GATHER:
        return gather(q)
    if work == SPREAD:
        return spread(word(q), word(q + 8), word(q + 16), word(q + 24))
    if work == FIND:
        return find(q)
    high, low = digest(word(q), word(q + 8), word(q + 16), word(q + 24))
    put_word(q + 32, signed(high))
    put_word(q + 40, signed(low))
    return 0

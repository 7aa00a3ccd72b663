"""The key set and the table of counts: exact, however often they were merged."""

from __future__ import annotations

import os
import resource
from collections import Counter
from pathlib import Path

import numpy  # noqa: F401 -- so that its own memory is there before any is measured
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.counts import Counts
from engine.seen import SeenKeys

KEYS = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda halves: halves[0].to_bytes(8) + halves[1].to_bytes(8))
"""Few high halves, so that they are often equal where the keys are not."""


@given(batches=st.lists(st.lists(KEYS, max_size=12), max_size=8), recent=st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_it_is_a_set(batches: list[list[bytes]], recent: int) -> None:
    seen, plain = SeenKeys(recent_keys=recent), set[bytes]()
    for batch in batches:
        seen.refresh(batch)
        for key in batch:
            assert (key in seen.recent) == (key in plain)
            seen.recent.add(key)
            plain.add(key)
        assert all(key in seen for key in plain)
        assert seen.all() == plain


@given(texts=st.lists(st.integers(0, 12).map(str), max_size=80), recent=st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_it_is_a_counter(texts: list[str], recent: int) -> None:
    counts, plain = Counts(recent_texts=recent), Counter[str]()
    for text in texts:
        assert counts[text] == plain[text]
        assert counts["never counted"] == 0
        counts[text] += 1
        plain[text] += 1
        assert len(counts) <= recent
    assert {text: counts[text] for text in plain} == plain


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_million_keys_take_little_memory() -> None:
    before = _resident_bytes()
    seen = SeenKeys()
    for _ in range(1000):
        keys = [os.urandom(16) for _ in range(1000)]
        seen.refresh(keys)
        assert not seen.recent.issuperset(keys)
        seen.recent.update(keys)
    assert _resident_bytes() - before < 40e6, "16 MB and the set of the latest; a plain set takes 120 MB"
    assert all(key in seen for key in keys)
    assert len(seen.all()) == 1_000_000


def test_counts_of_many_texts_take_little_memory() -> None:
    before = _resident_bytes()
    counts = Counts()
    for number in range(300_000):
        counts[f"a text of some length, with the number {number}"] += 1
    assert _resident_bytes() - before < 28e6, "6 MB and the dictionary of the latest; a plain Counter takes 37 MB"
    assert counts["a text of some length, with the number 7"] == 1

"""The key set: exact, however often it was merged."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.seen import SeenKeys

KEYS = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda halves: halves[0].to_bytes(8) + halves[1].to_bytes(8))
"""Few high halves, so that they are often equal where the keys are not."""


@given(batches=st.lists(st.lists(KEYS, max_size=12), max_size=8), recent=st.integers(1, 8))
@settings(max_examples=300, deadline=None)
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


def test_a_million_keys_take_little_memory() -> None:
    seen = SeenKeys()
    for _ in range(8):
        for start in range(0, 125_000, 1000):
            keys = [os.urandom(16) for _ in range(start, start + 1000)]
            seen.refresh(keys)
            assert not seen.recent.issuperset(keys)
            seen.recent.update(keys)
    assert len(seen.all()) == 1_000_000
    assert len(seen.recent) < 150_000

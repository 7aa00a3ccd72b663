from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trainer.order import LengthOrder, order


@given(st.lists(st.integers(1, 500), max_size=300), st.integers(1, 9), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(lengths: list[int], batch_size: int, epoch: int) -> None:
    assert sorted(order(lengths, batch_size=batch_size, seed=1, epoch=epoch)) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 500), max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_a_batch_takes_rows_that_are_neighbours_in_length(lengths: list[int], batch_size: int, epoch: int) -> None:
    rows = order(lengths, batch_size=batch_size, seed=1, epoch=epoch)
    spans = [sorted(lengths[i] for i in rows[n : n + batch_size]) for n in range(0, len(rows), batch_size)]
    if len(lengths) <= 50 * batch_size:
        assert all(before[-1] <= after[0] for before, after in pairwise(sorted(spans)))


def test_the_order_is_one_of_seed_and_epoch() -> None:
    lengths = [random.Random(n).randrange(10, 400) for n in range(1000)]
    assert order(lengths, batch_size=8, seed=1, epoch=0) == order(lengths, batch_size=8, seed=1, epoch=0)
    assert order(lengths, batch_size=8, seed=1, epoch=0) != order(lengths, batch_size=8, seed=1, epoch=1)
    assert order(lengths, batch_size=8, seed=1, epoch=0) != order(lengths, batch_size=8, seed=2, epoch=0)


def test_grouping_leaves_little_padding_and_no_trend() -> None:
    lengths = [random.Random(n).randrange(10, 400) for n in range(2000)]
    rows = order(lengths, batch_size=8, seed=1, epoch=0)
    batches = [[lengths[i] for i in rows[n : n + 8]] for n in range(0, len(rows), 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    half = len(batches) // 2
    first, second = (sum(max(batch) for batch in part) / half for part in (batches[:half], batches[half:]))
    assert 0.8 < first / second < 1.25


def test_a_sampler_asks_for_the_epoch_each_time() -> None:
    epochs = iter([0, 1, 0])
    sampler = LengthOrder([5, 6, 7, 8] * 20, batch_size=2, seed=3, epoch=lambda: next(epochs))
    first, second, third = list(sampler), list(sampler), list(sampler)
    assert len(sampler) == 80
    assert first == third != second

"""Order: in which order the rows of an epoch are trained.

Rows of about one length share a batch, so little of it is padding; the batches themselves are shuffled, so a step still
sees the whole mixture. The order is a function of (seed, epoch) alone: a resumed run goes on exactly where it stopped.
Knows lengths, not rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

POOL_BATCHES = 50
"""Batches that are sorted by length together: enough to cut padding, few enough to leave the draw random."""


class LengthOrder:
    """A sampler for torch's DataLoader. `epoch` is asked each time an order begins."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(order(self._lengths, batch_size=self._batch_size, seed=self._seed, epoch=self._epoch()))


class SeededByEpoch:
    """One of TRL's samplers, which draws an epoch's order from what the epochs before it left of its generator."""

    def __init__(self, sampler: Any, *, seed: int, epoch: Callable[[], int]) -> None:
        self._sampler = sampler
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(random.Random(f"{self._seed}/{self._epoch()}").getrandbits(63))
        return iter(self._sampler)


def order(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[int]:
    """Return every index once, such that each run of `batch_size` indices has rows of about one length."""
    draw = random.Random(f"{seed}/{epoch}")
    indices = list(range(len(lengths)))
    draw.shuffle(indices)
    pool = batch_size * POOL_BATCHES
    batches = []
    for start in range(0, len(indices), pool):
        rows = sorted(indices[start : start + pool], key=lambda index: lengths[index])
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    # A short batch anywhere but at the end would shift every later one across two lengths.
    rest = batches.pop() if batches and len(batches[-1]) < batch_size else []
    draw.shuffle(batches)
    return [index for batch in [*batches, rest] for index in batch]

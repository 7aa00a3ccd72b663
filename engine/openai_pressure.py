"""Pressure: how many requests may be open at an endpoint at once, by how often it says that they are too many.

Prompts that an endpoint could not take yet wait here, where waiting costs none of their retries: the places are halved
when it answers 429, and come back one with each of its answers. Knows nothing of HTTP or of prompts.
"""

from __future__ import annotations

import asyncio
import random
from types import TracebackType

LONGEST_PAUSE_S = 30.0
PAUSE_SHARE = 1 / 8
"""The first pause, of the first wait of a prompt: with longer ones, one 429 in a hundred costs half of the answers."""


class Pressure:
    """Places for requests; `async with` takes one and says in which round it was taken."""

    def __init__(self, most: int, *, first_pause_s: float) -> None:
        self._most = self.allowed = most
        self._first_pause_s = PAUSE_SHARE * first_pause_s
        self._open = 0
        self._free = asyncio.Event()
        self._round = 0
        self._refused = 0

    async def __aenter__(self) -> int:
        while self._open >= self.allowed:
            self._free.clear()
            await self._free.wait()
        self._open += 1
        return self._round

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open -= 1
        self._free.set()

    def too_many(self, in_round: int) -> float:
        """Halve the places and return for how many seconds nothing should be sent.

        Once a round: requests that went out together are refused together, and that is one refusal.
        """
        if in_round != self._round:
            return 0.0
        pause_s = min(LONGEST_PAUSE_S, self._first_pause_s * 2.0 ** min(self._refused, 32))
        self._round += 1
        self._refused += 1
        self.allowed -= self.allowed // 2
        return random.uniform(pause_s / 2, pause_s)

    def answered(self) -> None:
        """Note an answer, which gives a place back."""
        self._refused = 0
        self.allowed = min(self._most, self.allowed + 1)
        self._free.set()

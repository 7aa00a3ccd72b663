"""Pressure: when the next request may go to an endpoint, by its rate limit and by what it says and does.

Prompts that an endpoint could not take yet wait here, in turn, where waiting costs none of their retries. Places are
halved when it says that requests are too many, and come back one with each of its answers; while it is closed, nothing
is sent, for doubling pauses. Knows nothing of HTTP or of prompts.
"""

from __future__ import annotations

import asyncio
import random
import time
from types import TracebackType

from asyncio_throttle import Throttler

LONGEST_PAUSE_S = 30.0
LONGEST_KNOCK_S = 2.0
"""Longest pause before an endpoint that takes no connection is tried again: that costs next to nothing."""
PAUSE_SHARE = 1 / 8
"""The first pause, of the first wait of a prompt: with longer ones, one 429 in a hundred costs half of the answers."""


class Pressure:
    """Places for requests; `async with` waits for one and says in which round it was taken."""

    def __init__(self, most: int, *, first_pause_s: float, requests_per_s: float | None = None) -> None:
        self._most = self.allowed = most
        self._first_pause_s = PAUSE_SHARE * first_pause_s
        self._throttle = _throttle(requests_per_s)
        self._turn = asyncio.Lock()
        self._free = asyncio.Event()
        self._open = 0
        self._round = 0
        self._refused = 0
        self._closed_until = 0.0
        self._silent_since: float | None = None

    async def __aenter__(self) -> int:
        async with self._turn:
            await self._opened()
            while self._throttle is not None:
                await self._throttle.acquire()
                if self.pause_s <= 0:
                    break
                await self._opened()
            self._open += 1
            return self._round

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open -= 1
        self._free.set()

    async def _opened(self) -> None:
        """Wait until there is a place and no pause."""
        while True:
            if self._open >= self.allowed:
                self._free.clear()
                await self._free.wait()
            elif (pause_s := self.pause_s) > 0:
                await asyncio.sleep(pause_s)
            else:
                return

    @property
    def pause_s(self) -> float:
        """Seconds for which nothing is sent; none are left where it is 0 or less."""
        return self._closed_until - time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the endpoint began to refuse what it is sent, without an answer in between."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def hold_back(self, pause_s: float) -> None:
        """Send nothing for so many seconds."""
        self._closed_until = max(self._closed_until, time.monotonic() + pause_s)

    def refused(self, in_round: int, *, too_many: bool) -> None:
        """Note that a request was not taken: pause, and halve the places where requests were too many.

        Once a round: requests that went out together are refused together, and that is one refusal.
        """
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        if in_round != self._round:
            return
        longest_s = LONGEST_PAUSE_S if too_many else LONGEST_KNOCK_S
        pause_s = min(longest_s, self._first_pause_s * 2.0 ** min(self._refused, 32))
        self._round += 1
        self._refused += 1
        if too_many:
            self.allowed -= self.allowed // 2
        self.hold_back(random.uniform(pause_s / 2, pause_s))

    def forget_silence(self) -> None:
        """Begin anew: nobody asks any more, so that it is no wonder if nothing is answered."""
        self._silent_since = None

    def answered(self) -> None:
        """Note an answer, which gives a place back."""
        self._refused = 0
        self.forget_silence()
        self.allowed = min(self._most, self.allowed + 1)
        self._free.set()


def _throttle(requests_per_s: float | None) -> Throttler | None:
    """Return the rate limit. Throttler counts whole requests in a period, so the period takes up the fraction."""
    if requests_per_s is None:
        return None
    burst = max(1, int(requests_per_s))
    return Throttler(rate_limit=burst, period=burst / requests_per_s)

"""Signals for a process that only waits for others: passed on, so that those decide how they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(Protocol):
    """A process that was started."""

    def send_signal(self, number: int, /) -> None: ...


@contextmanager
def forwarded(running: Sequence[Signalled]) -> Iterator[list[int]]:
    """Pass signals on to the processes, and list those received."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

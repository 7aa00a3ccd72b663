"""Signals: told to a running event loop, or passed on by a process that waits for others, which decide how they end.

Where that one is killed and cannot pass anything on, Linux tells those that asked for it before they started.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Protocol

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PARENT_DIED = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


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


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, here and in a process that is started in the block, until that one calls `release_interrupts`.

    A Ctrl-C goes to all processes of a terminal; one that is not ready for it would print a traceback.
    """
    resource_tracker.ensure_running()  # it is started with the first process, and then SIGINT is let through
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        release_interrupts()


def release_interrupts() -> None:
    """Let SIGINT through again, also one that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def ends_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that has the child sent SIGTERM when this process is gone; None where there is no Linux."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PARENT_DIED, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the request
            os._exit(128 + signal.SIGTERM)

    return ask


@contextmanager
def told(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` from the running event loop at every SIGINT and SIGTERM."""
    loop, names = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    for name in names:
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)

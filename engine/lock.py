"""One process at a time in a folder. Promises that the lock goes with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import UsageError
from engine.part import disk

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder against a second process.

    Raises: UsageError where another process holds it.
    """
    path = folder / LOCK
    with disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"{folder} is being written by another process; wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)

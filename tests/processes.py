"""Which processes there are, for the tests that kill some."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path


def left_after_a_while(pids: Sequence[int]) -> list[int]:
    """Return which processes are still there once all are gone, or after 20 seconds."""
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def children(parent: int, said: str = "") -> list[int]:
    """Return the processes that one has started, and in whose command line this stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and said in path.with_name("cmdline").read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

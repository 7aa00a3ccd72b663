"""Ranks: the processes of one training, one a card, as `--processes`, `accelerate launch` or torchrun start them.

Process 0 writes and speaks; all of them read and compute. Promises that what the others look for is there once they
have waited. In a training of one process nothing here does anything.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from engine import progress

PATIENCE = timedelta(hours=1)
"""How long the others wait for process 0, which cuts the start model and writes the student."""


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Say whether this is the process that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def local() -> int:
    """Return the number of this process on its machine, which is that of its card."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def note(line: str) -> None:
    """Say something on stderr, once."""
    if is_main():
        progress.note(line)


def join(device: str) -> None:
    """Meet the other processes; each has done by then what comes before this call."""
    if processes() > 1:
        _state(device)


def wait() -> None:
    """Wait until every process has come here."""
    if processes() > 1:
        _state().wait_for_everyone()


def leave() -> None:
    """Part from the other processes, when all is done."""
    if processes() > 1:
        _state().destroy_process_group()


def _state(device: str = "") -> Any:
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=PATIENCE) if device else PartialState()

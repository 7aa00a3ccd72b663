"""Standard output, which is for results: one that takes none is an error that is told in a sentence.

Promises that one which was closed before the process began is as one on a full disk: what is written there fails.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import orjson

from engine.errors import DiskError


def stand_in() -> None:
    """Put a stream that takes nothing where standard output is closed.

    Python would leave out what is printed, and a file that is opened later would become the standard output of
    libraries and of other processes.
    """
    if sys.stdout is not None:
        return
    descriptor = -1
    while descriptor < 1:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(descriptor, True)
    sys.stdout = os.fdopen(descriptor, "w", encoding="utf-8")


def give_up() -> None:
    """Drop what could not be written, of which Python would complain once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(result: dict[str, Any]) -> None:
    """Print a result as one line of JSON.

    Raises: DiskError where it cannot be written.
    """
    try:
        print(orjson.dumps(result).decode(), flush=True)
    except OSError as error:
        give_up()
        raise DiskError(f"standard output: cannot be written ({error.strerror}); the work itself is done") from None

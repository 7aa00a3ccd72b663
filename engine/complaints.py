"""Standard error that ends no command: what it does not take is left out.

Promises that a full disk, a closed pipe or a closed descriptor behind it changes neither what is done nor the exit
code. Knows nothing of what is said there.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Lossy(io.FileIO):
    """A descriptor that takes everything: what cannot be written counts as written."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        # None also means that a descriptor which does not block has no room now.
        return memoryview(data).nbytes if written is None else written


def tolerate_loss() -> None:
    """Let everything that this process says on standard error be left out where it cannot be written.

    A stream that somebody else has put there is left alone.
    """
    if sys.stderr is not sys.__stderr__:
        return
    # It is None where it was closed before the process began.
    descriptor, encoding = (2, sys.stderr.encoding) if sys.stderr else (_nowhere(), "utf-8")
    stream = io.BufferedWriter(_Lossy(descriptor, "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(stream, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _nowhere() -> int:
    """Return a descriptor that leads nowhere, with nothing closed below it.

    A file that is opened later would else become standard error, and what libraries say would be written into it.
    """
    descriptor = -1
    while descriptor < 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, True)
    return descriptor

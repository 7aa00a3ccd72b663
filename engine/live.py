"""Live: lines on a terminal that are written over, and notes between them.

Promises that a line is cut where it would wrap, since it could not be written over then, and that a note stands on
lines of its own. Knows texts; nothing of what they say.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COLUMNS = 80
"""Width of a terminal that does not say how wide it is."""
CLEAR = "\r\x1b[J"
"""Goes to the start of the line and clears it and what is below."""


def is_live() -> bool:
    """Say whether somebody looks on: standard error is a terminal."""
    return sys.stderr.isatty()


def show(lines: Sequence[str]) -> None:
    """Write lines that the next call, or a note, writes over."""
    most = _columns() - 1  # a cursor behind the last column may be on the next line
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    print(CLEAR + "\n".join(line[:most] for line in lines) + "\r" + up, end="", file=sys.stderr, flush=True)


def note(*texts: str | None) -> None:
    """Say some things to the person who runs this, each on lines of its own; None says nothing."""
    for text in filter(None, texts):
        print((CLEAR if is_live() else "") + text, file=sys.stderr, flush=True)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or COLUMNS
    except OSError:
        return COLUMNS

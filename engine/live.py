"""Live: lines on a terminal that are written over, and notes between them.

Promises that a line is cut where it would wrap, since it could not be written over then, whatever is written in it,
and that a note stands on lines of its own. Knows texts; nothing of what they say.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence

COLUMNS = 80
"""Width of a terminal that does not say how wide it is."""
EMOJI = "\ufe0f"
"""Makes an emoji of the character before it, which takes another column on many terminals."""
CLEAR = "\r\x1b[J"
"""Goes to the start of the line and clears it and what is below."""


def is_live() -> bool:
    """Say whether somebody looks on: standard error is a terminal."""
    return sys.stderr.isatty()


def show(lines: Sequence[str]) -> None:
    """Write lines that the next call, or a note, writes over."""
    most = _columns() - 1  # a cursor behind the last column may be on the next line
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    print(
        CLEAR + "\n".join(_cut(_as_written(line), most) for line in lines) + "\r" + up,
        end="",
        file=sys.stderr,
        flush=True,
    )


def note(*texts: str | None) -> None:
    """Say some things to the person who runs this, each on lines of its own; None says nothing."""
    for text in filter(None, texts):
        print((CLEAR if is_live() else "") + text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return a text that stays on its line: with a space for each line break, and `?` for each escape and the like."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else "?" for one in text)


def _as_written(text: str) -> str:
    """Return a text as standard error shows it, which spells out what its encoding does not have."""
    encoding = sys.stderr.encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def _cut(text: str, columns: int) -> str:
    """Return as much of a printable text as so many columns take."""
    for place, one in enumerate(text):
        columns -= _width(one)
        if columns < 0:
            return text[:place]
    return text


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return int(character == EMOJI)
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or COLUMNS
    except OSError:
        return COLUMNS

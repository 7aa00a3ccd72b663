"""JSON that is read back from disk, and what is said where it cannot be.

Knows shards as lines; what a row means is its reader's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.errors import DataError
from engine.shards import Shard, read_lines

T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: it is no JSON, or of another shape; it is not UTF-8; it is nested without end."""


def published_rows(
    folder: Path, shard: Shard, decode: Callable[[bytes], T], *, do: str = "generate or filter again"
) -> Iterator[tuple[bytes, T]]:
    """Yield the lines of a published shard, each with what `decode` makes of it; `do` is the advice where it cannot.

    Raises: DataError where the shard is not the one that was published, or with `path:line` where a line is not a row.
    """
    for number, line in enumerate(read_lines(folder, shard), start=1):
        try:
            row = decode(line)
        except UNREADABLE as error:
            raise DataError(f"{folder / shard.file}:{number}: not a row ({error}); {do}") from None
        yield line, row

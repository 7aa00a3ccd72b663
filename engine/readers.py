"""Where rows come from: files, plain or compressed, tables, standard input -> batches of lines.

Promises that lines are split at newline bytes only, that nothing is read ahead beyond one batch, and that a reader
can start again at any position that it has reported. Knows nothing of columns or rules.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from engine.columns import Batch
from engine.errors import DataError, MissingError
from engine.run_rows import is_run, run_lines
from engine.zstd import open_zstd

BATCH_BYTES = 1 << 17
"""Bytes of one batch: what it holds stays in the processor's second cache (measured: 1 MiB costs 20% more)."""
BOM = b"\xef\xbb\xbf"
STDIN = "-"
GZIP, ZSTD = (".gz", ".gzip"), (".zst", ".zstd")


class Position(msgspec.Struct, frozen=True):
    """How far the sources have been read."""

    source: int = 0
    """Number of the source, from 0."""
    line: int = 0
    """Lines (rows, in a table) of it that have been read."""
    offset: int = 0
    """Bytes of it that have been read, counted after decompression."""


_BEGIN = Position()


class Piece(NamedTuple):
    """Consecutive whole lines of one source."""

    source: int
    """Its number, from 0."""
    name: str
    lines: bytes
    offset: int
    """Where the piece ends in it, as in Position."""


def read_pieces(sources: Sequence[str], start: Position = _BEGIN, *, piece_bytes: int = BATCH_BYTES) -> Iterator[Piece]:
    """Yield pieces of about so many bytes from a position on, without a byte order mark.

    Raises: MissingError where a source is not there, DataError where it cannot be read.
    """
    for number, source in enumerate(sources[start.source :], start.source):
        position = start if number == start.source else Position(source=number)
        offset = position.offset
        with _named(source):
            for lines in _lines(source, position, piece_bytes):
                begin, data = offset, b"".join(lines) if isinstance(lines, list) else lines
                offset += len(data)
                yield Piece(number, source, data if begin else data.removeprefix(BOM), offset)


def read(sources: Sequence[str], start: Position) -> Iterator[tuple[Batch, Position]]:
    """Yield the same as batches, each with the position behind it."""
    source, line = start.source, start.line
    for piece in read_pieces(sources, start):
        line = line if piece.source == source else 0
        source, batch = piece.source, Batch(piece.name, line + 1, piece.lines)
        line += len(batch.lines)
        yield batch, Position(source, line, piece.offset)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Turn an error of reading into a sentence that names the source."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"{source}: no such file; give a file with rows, or - for standard input") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{source}: cannot be read to its end ({error}); mend the file, or take the part before"
        ) from error


def _lines(source: str, position: Position, piece_bytes: int) -> Iterator[list[bytes] | bytes]:
    """Yield whole lines: one by one, or as the bytes that they stand in."""
    path = Path(source)
    if source != STDIN and is_run(path):
        yield from run_lines(path, skip=position.line)
        return
    if source != STDIN and (path.is_dir() or path.suffix in (".parquet", ".arrow")):
        from engine.tables import table_lines

        yield from table_lines(path, skip=position.line)
        return
    with _open(source) as file:
        _skip(file, position, source)
        yield from _pieces(file, piece_bytes)


def _pieces(file: io.BufferedReader[Any], piece_bytes: int) -> Iterator[bytes]:
    """Yield whole lines in pieces; where reading fails, the lines before come first, however large a piece is."""
    failure: Exception | None = None
    while failure is None:
        parts, size = list[bytes](), 0
        try:
            # `read` would lose what it has where it fails.
            while size < piece_bytes and (part := file.read1(piece_bytes - size)):
                parts.append(part)
                size += len(part)
            if parts and not parts[-1].endswith(b"\n"):
                # One line more at most: the rest of the one that was cut.
                parts.append(file.readline())
        except Exception as error:
            failure = error
        data = b"".join(parts)
        if failure is not None:
            data = data[: data.rfind(b"\n") + 1]
        if data:
            yield data
        elif failure is None:
            return
    raise failure


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, given out as far as it goes before it says that it is cut."""

    def __init__(self, packed: io.BufferedIOBase) -> None:
        self._packed = packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._packed.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _open(source: str) -> Iterator[io.BufferedReader[Any]]:
    if source == STDIN:
        yield cast("io.BufferedReader[Any]", sys.stdin.buffer)
    elif source.endswith(GZIP):
        import gzip

        with gzip.open(source, "rb") as packed, io.BufferedReader(_Unpacked(packed), BATCH_BYTES) as file:
            yield file
    elif source.endswith(ZSTD):
        with open_zstd(Path(source)) as file:
            yield file
    else:
        with Path(source).open("rb", buffering=0) as plain, io.BufferedReader(plain, BATCH_BYTES) as file:
            yield file


def _skip(file: io.BufferedReader[Any], position: Position, source: str) -> None:
    """Go to a position; what cannot seek in the file itself is read up to it."""
    if not position.offset:
        return
    if source != STDIN and not source.endswith((*GZIP, *ZSTD)):
        size = file.seek(0, 2)
        if size >= position.offset:
            file.seek(position.offset)
            return
        raise DataError(f"{source} has shrunk to {size:,} bytes since it was read; start again with another --out")
    left = position.offset
    while left:
        chunk = file.read(min(left, BATCH_BYTES))
        if not chunk:
            raise DataError(f"{source} has shrunk since it was read; start again with another --out")
        left -= len(chunk)

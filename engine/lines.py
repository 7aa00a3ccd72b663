"""Lines of a text file, in order or by number, without holding the file.

Promises that blank lines are left out and that the others keep their line number; that a `LineFile` takes 32 bytes for
each 4 KiB of its file; and that a line which it gives out is the one that stood there when the file was opened: a file
that was changed since is an error. Knows nothing of what a line says.
"""

from __future__ import annotations

import codecs
import os
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec
import xxhash

from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError

Line = tuple[int, bytes]
"""Its number in the file, from 1, and what it says, in UTF-8 and without its end."""

BLOCK_BYTES = 1 << 12
"""Least bytes of a block, the piece of a file that is read to get at one of its lines."""
BUFFER_BYTES = 1 << 20


def numbered_lines(path: Path) -> Iterator[Line]:
    """Yield every line of a UTF-8 file that is not blank.

    Raises: MissingError where it is not there, DataError where a line is not UTF-8.
    """
    number = 1
    with _told(path), path.open("rb", buffering=BUFFER_BYTES) as file:
        for block in _blocks(file):
            yield from _lines(path, number, block)
            number += block.count(b"\n")


def decode_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Decode one JSONL line that must hold an object.

    Raises: DataError with `path:line`.
    """
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except UNREADABLE as error:
        raise DataError(f"{path}:{number}: not a JSON object ({error}); mend or remove the line") from None


def digest_of(path: Path) -> str:
    """Return the xxh3-128 of what a file holds, in hexadecimal."""
    digest = xxhash.xxh3_128()
    add_file(digest, path)
    return digest.hexdigest()


def add_file(digest: xxhash.xxh3_128, path: Path) -> None:
    """Add what a file holds to a digest."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(BUFFER_BYTES):
            digest.update(chunk)


class LineFile:
    """The lines of a file that are not blank, by number from 0."""

    def __init__(self, path: Path, check: Callable[[int, bytes], object]) -> None:
        """Read a file once and show every line and its number to `check`, which raises where one is not good.

        Raises: MissingError where it is not there, DataError where a line is not UTF-8.
        """
        self._path = path
        self._count = self._end = 0
        # An entry a block: where it begins, how many lines are before it without and with blank ones, and its hash.
        self._starts, self._before, self._numbers, self._hashes = (array("Q") for _ in range(4))
        with _told(path):
            # Held open, so that a file which is replaced while a run goes on is read as it was.
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            os.lseek(self._file, 0, os.SEEK_SET)  # refuses a pipe, which can be read once only
            self.digest = self._scan(check)
            """The xxh3-128 of the file, in hexadecimal."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Line:
        """Return one line.

        Raises: DataError where the file has changed.
        """
        if not 0 <= index < self._count:
            raise IndexError(index)
        return next(self.lines(index))

    def lines(self, start: int = 0) -> Iterator[Line]:
        """Yield the lines from one on.

        Raises: DataError where the file has changed.
        """
        if start >= self._count:
            return
        block = bisect_right(self._before, start) - 1
        skipped = start - self._before[block]
        for number in range(block, len(self._starts)):
            yield from islice(self._read(number), skipped, None)
            skipped = 0

    def _scan(self, check: Callable[[int, bytes], object]) -> str:
        digest, lines = xxhash.xxh3_128(), 0
        with open(self._file, "rb", buffering=BUFFER_BYTES, closefd=False) as file:
            for block in _blocks(file):
                self._starts.append(self._end)
                self._before.append(self._count)
                self._numbers.append(lines)
                self._hashes.append(xxhash.xxh3_64_intdigest(block))
                digest.update(block)
                for line in _lines(self._path, lines + 1, block):
                    check(*line)
                    self._count += 1
                self._end += len(block)
                lines += block.count(b"\n")
        return digest.hexdigest()

    def _read(self, block: int) -> Iterator[Line]:
        start, following = self._starts[block], block + 1
        end = self._starts[following] if following < len(self._starts) else self._end
        with _told(self._path):
            data = os.pread(self._file, end - start, start)
        if xxhash.xxh3_64_intdigest(data) != self._hashes[block]:
            raise DataError(f"{self._path}: has changed since it was opened; put back what it said, and run again")
        return _lines(self._path, self._numbers[block] + 1, data)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of reading into a sentence that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"{path} is not there; give the path of a file") from None
    except OSError as error:
        raise MissingError(f"{path} cannot be read ({error.strerror}); give the path of a file") from None


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a file in pieces of whole lines."""
    while block := file.read(BLOCK_BYTES):
        yield block if block.endswith(b"\n") else block + file.readline()


def _lines(path: Path, number: int, block: bytes) -> Iterator[Line]:
    """Yield the lines of a block, whose first one has this number, but for blank ones.

    Raises: DataError where one is not UTF-8.
    """
    if number == 1:
        block = block.removeprefix(codecs.BOM_UTF8)
    lines = block.split(b"\n")
    if not _is_utf8(block):
        wrong = next(place for place, line in enumerate(lines, number) if not _is_utf8(line))
        raise DataError(f"{path}:{wrong}: not UTF-8; convert the file")
    for place, line in enumerate(lines, number):
        if line.strip():
            yield place, line.rstrip(b"\r")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Part: a file that is appended to as `.part`, and gets its final name only whole and on the disk.

Promises that what `append` was given survives a kill of this process, that `seal` returns only when it would survive a
power cut too, and that a write which the disk refuses is one sentence. Knows bytes and counts, not what they mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

from engine.errors import DiskError

PART = ".part"
ZSTD = ".zst"
"""Behind the name of a shard that is compressed."""
ZSTD_LEVEL = 3


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn an OSError into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise DiskError(
            f"{path}: cannot be written ({error.strerror or error}); mend that, or write to another place"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it; one that is there is left as it is."""
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)


Pieces = list[bytes] | list[memoryview]
"""Bytes to write one behind the other."""


class Part:
    """A file that grows under a name of its own until it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.rows = 0
        self._hash = xxhash.xxh3_128()
        self._pack = _zstd_packer() if path.name.endswith(ZSTD + PART) else None
        with disk(path):
            self._file: IO[bytes] = path.open("wb", buffering=0)

    def append(self, lines: Pieces, rows: int) -> None:
        data = lines[0] if len(lines) == 1 else b"".join(lines)
        self._write(self._pack.compress(data) if self._pack else data)
        self.rows += rows

    def _write(self, data: bytes | memoryview) -> None:
        with disk(self.path):
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        self._hash.update(data)
        self.bytes += len(data)

    def seal(self, final: Path) -> None:
        """Give the file its final name, durably but for its folder's entry."""
        if self._pack:
            self._write(self._pack.flush())
        with disk(self.path):
            with self._file:
                os.fsync(self._file.fileno())
            self.path.replace(final)

    @property
    def digest(self) -> str:
        """The xxh3-128 of what was written, in hexadecimal."""
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()


def _zstd_packer() -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with disk(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

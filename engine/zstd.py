"""Read zstd files to their end, and say so where they have none: a cut file must not pass for a short one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engine.errors import DataError, MissingError

CHUNK = 1 << 17


@contextmanager
def open_zstd(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a zstd file of one or more frames to be read.

    Raises: DataError where it is damaged or cut, MissingError without `zstandard`.
    """
    try:
        import zstandard
    except ImportError:
        raise MissingError(f"{path}: zstd needs the package zstandard; pip install zstandard") from None
    try:
        with path.open("rb", buffering=0) as packed, io.BufferedReader(_Frames(packed), CHUNK) as file:
            yield file
    except (zstandard.ZstdError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read to its end ({error}); mend the file, or take the part before"
        ) from error


class _Frames(io.RawIOBase):
    def __init__(self, packed: IO[bytes]) -> None:
        import zstandard

        self._packed = packed
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._unread = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            data = self._unread or self._packed.read(CHUNK)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._plain = memoryview(self._frame.decompress(data))
            self._unread = b""
            if self._frame.eof:
                self._unread = self._frame.unused_data
                self._frame = None
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size

"""A folder that appears under its name whole or not at all, and the checksums of what is in it.

Promises that a failure leaves nothing behind, that a kill leaves a `.part` folder which the next writer clears away,
and that two writers of one name do not meet. Knows nothing of what the files are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import xxhash

from engine.errors import UsageError
from engine.lock import LOCK, locked
from engine.shards import PART, disk


class File(msgspec.Struct, frozen=True):
    """One file of a folder."""

    path: str
    """From the folder, with slashes."""
    bytes: int
    sha256: str
    xxh3: str
    """xxh3-128, in hexadecimal."""
    rows: int | None = None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the name of `target` at the end.

    Raises: UsageError where the name is taken, or another process is writing there.
    """
    if target.exists():
        raise UsageError(f"{target} is there already; remove it, or choose another name")
    half_made = target.with_name(target.name + PART)
    with disk(half_made):
        half_made.mkdir(parents=True, exist_ok=True)
    with locked(half_made):
        _clear(half_made)
        try:
            yield half_made
            with disk(target):
                (half_made / LOCK).unlink()
                _sync(half_made)
                half_made.rename(target)
                _sync(target.parent)
        except BaseException:
            shutil.rmtree(half_made, ignore_errors=True)
            raise


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, and the folders that it lies in."""
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        _sync(path)


def checksums(folder: Path, rows: Mapping[Path, int]) -> list[File]:
    """Return every file with its checksums, and its rows where they are given; each is made durable on the way."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return [checksum(folder, path, rows.get(path)) for path in paths]


def checksum(folder: Path, path: Path, rows: int | None = None) -> File:
    """Return one file of a folder with its checksums, and make it durable."""
    sha256, xxh3, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with disk(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            xxh3.update(chunk)
            size += len(chunk)
        _sync(path)
    return File(path.relative_to(folder).as_posix(), size, sha256.hexdigest(), xxh3.hexdigest(), rows)


def _sync(path: Path) -> None:
    """Make a file or the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what a killed writer left."""
    for path in folder.iterdir():
        with disk(path):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

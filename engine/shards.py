"""Sharded JSONL on disk: append, publish, read, verify.

A shard appears under its final name only whole: written as `.part`, fsynced, renamed, its folder fsynced, then
named in the manifest, which is itself replaced atomically. All kinds of rows (kept, rejected, skipped, failed) are
published together, so the manifest always names a prefix of the run. Knows lines and counts, not what a row means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import xxhash

from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError
from engine.part import PART as PART
from engine.part import ZSTD, Part, Pieces, sync_folder
from engine.part import disk as disk
from engine.rows import SCHEMA_VERSION, Outcome
from engine.zstd import open_zstd

T = TypeVar("T")

MANIFEST = "manifest.json"

LOGPROBS_SHARE = 8
"""A kept shard is published, too, when its log-probabilities are so many times as large as a shard may be."""


class Sidecar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file beside a shard that holds more about the same rows (engine/logprobs.py)."""

    file: str
    bytes: int
    xxh3: str
    """xxh3-128 of the file, in hexadecimal."""


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One published file."""

    file: str
    kind: Outcome
    rows: int
    bytes: int
    xxh3: str
    """xxh3-128 of the file, in hexadecimal."""
    logprobs: Sidecar | None = None
    """The teacher's log-probabilities of these rows, where they were asked for."""


class Earlier(msgspec.Struct, frozen=True):
    """What answered the prompts before `until`, and after those of the entry before."""

    until: int
    teacher: dict[str, str]


class Manifest(msgspec.Struct, kw_only=True):
    """What a run is, and which shards belong to it."""

    schema: int = SCHEMA_VERSION
    fingerprint: dict[str, Any] = {}
    """Every setting that decides which rows come out, under its dotted key."""
    versions: dict[str, str] = {}
    teacher: dict[str, str] = {}
    earlier: list[Earlier] = []
    """Teachers of the run's earlier parts, where they were not quite this one, in order."""
    shards: list[Shard] = []
    position: dict[str, int] = {}
    """How far the input of `filter` was read when the last shard was published."""
    finished: bool = False
    summary: dict[str, Any] = {}
    """The last line of the run, once it is finished."""

    @property
    def is_open(self) -> bool:
        """Say whether the run was begun and has not ended, so that its rows are the first of more."""
        return bool(self.fingerprint) and not self.finished

    def teacher_of(self, index: int) -> dict[str, str]:
        """Return what answered the prompt of an index."""
        return next((part.teacher for part in self.earlier if index < part.until), self.teacher)

    def of(self, kind: Outcome) -> list[Shard]:
        """Return the shards of one kind, in order."""
        return [shard for shard in self.shards if shard.kind == kind]


class _Marks(msgspec.Struct):
    """What every manifest of a run has, of whatever version; that of an export bundle has no shards."""

    schema: int
    shards: msgspec.Raw


def read_manifest(folder: Path) -> Manifest:
    """Read a run's manifest.

    Raises: MissingError where there is none, DataError where it cannot be read.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        schema = msgspec.json.decode(data, type=_Marks).schema
        manifest = msgspec.json.decode(data, type=Manifest) if schema == SCHEMA_VERSION else None
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            f"{folder} is not a run: it has no {MANIFEST}; give the folder that generate wrote"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UNREADABLE as error:
        raise DataError(
            f"{path}: is no manifest of a run ({error}); give the folder that generate wrote, or restore the file"
        ) from None
    if manifest is None:
        raise DataError(
            f"{path}: has schema {schema}, and this version of potstill reads {SCHEMA_VERSION}; use the "
            "version that wrote it"
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace a run's manifest atomically and durably."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    replace_file(folder / MANIFEST, data + b"\n")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + PART)
    with disk(path), temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with disk(path):
        temporary.replace(path)
        sync_folder(path.parent)


class ShardWriter:
    """Appends lines to one `.part` file per kind and publishes them together."""

    def __init__(self, folder: Path, manifest: Manifest, *, shard_bytes: int, zstd: bool = False) -> None:
        self.folder = folder
        self.manifest = manifest
        self._suffix = ZSTD if zstd else ""
        self._shard_bytes = shard_bytes
        self._parts: dict[Outcome, Part] = {}
        self._logprobs: Part | None = None
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def append(self, kind: Outcome, lines: Pieces, *, rows: int | None = None) -> None:
        """Append whole lines (each with its newline) of one kind; they survive a kill of this process.

        With `rows`, the lines may be in any number of pieces that make up so many rows when joined.
        """
        if not lines:
            return
        part = self._parts.get(kind)
        if part is None:
            part = self._parts[kind] = Part(self._part_path(kind))
        part.append(lines, len(lines) if rows is None else rows)

    def append_logprobs(self, records: list[bytes]) -> None:
        """Append the records of kept rows that `append` is given next, so that no kept row is ever without."""
        if not records:
            return
        if self._logprobs is None:
            final = logprobs_path(self._final_path("kept"))
            self._logprobs = Part(final.with_name(final.name + PART))
        self._logprobs.append(records, len(records))

    @property
    def due(self) -> bool:
        """Say whether a shard has reached its size, so that it is time to publish."""
        if self._logprobs is not None and self._logprobs.bytes >= LOGPROBS_SHARE * self._shard_bytes:
            return True
        return any(part.bytes >= self._shard_bytes for part in self._parts.values())

    def publish(self) -> None:
        """Turn every `.part` into a shard of the manifest, durably."""
        shards = list(self.manifest.shards)
        for kind, part in sorted(self._parts.items()):
            shards.append(published(part, kind, self._final_path(kind), self._logprobs if kind == "kept" else None))
        self._parts.clear()
        self._logprobs = None
        sync_folder(self.folder)
        self.manifest.shards = shards
        write_manifest(self.folder, self.manifest)

    def close(self) -> None:
        """Close the files; what is not published stays in `.part` files for a resume."""
        for part in (*self._parts.values(), *([self._logprobs] if self._logprobs else [])):
            part.close()
        self._parts.clear()

    def _number(self, kind: Outcome) -> int:
        return len(self.manifest.of(kind))

    def _part_path(self, kind: Outcome) -> Path:
        return self._final_path(kind).with_name(self._final_path(kind).name + PART)

    def _final_path(self, kind: Outcome) -> Path:
        return self.folder / f"{kind}-{self._number(kind):05d}.jsonl{self._suffix}"


def logprobs_path(kept: Path) -> Path:
    """Return where the log-probabilities of a kept shard lie."""
    return kept.with_name(kept.name.replace("kept-", "logprobs-", 1).partition(".")[0] + ".bin")


def published(part: Part, kind: Outcome, final: Path, logprobs: Part | None = None) -> Shard:
    """Give a part its final name, after the log-probabilities of its rows, and return its entry for the manifest."""
    sidecar = None
    if logprobs is not None:
        logprobs.seal(logprobs_path(final))
        sidecar = Sidecar(file=logprobs_path(final).name, bytes=logprobs.bytes, xxh3=logprobs.digest)
    part.seal(final)
    return Shard(file=final.name, kind=kind, rows=part.rows, bytes=part.bytes, xxh3=part.digest, logprobs=sidecar)


def read_lines(folder: Path, shard: Shard) -> Iterator[bytes]:
    """Yield the lines of a published shard after checking that it is the file that was published.

    Raises: DataError where its size or checksum is not the manifest's.
    """
    path = folder / shard.file
    check_shard(folder, shard)
    with _unpacked(path) as file:
        yield from file


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


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix != ZSTD:
        with path.open("rb", buffering=1 << 20) as file:
            yield file
        return
    with open_zstd(path) as file:
        yield file


def check_shard(folder: Path, shard: Shard) -> None:
    """Compare a shard with its entry in the manifest.

    Raises: DataError where it is missing, cut or changed.
    """
    path = folder / shard.file
    digest = xxhash.xxh3_128()
    size = rows = 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                rows += chunk.count(b"\n")
        if path.suffix == ZSTD and size == shard.bytes and digest.hexdigest() == shard.xxh3:
            with _unpacked(path) as unpacked:
                rows = sum(chunk.count(b"\n") for chunk in iter(lambda: unpacked.read(1 << 20), b""))
    except FileNotFoundError:
        raise DataError(
            f"{path}: the shard is missing, though the manifest names it; restore it or generate again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it or generate again") from None
    if (size, rows, digest.hexdigest()) != (shard.bytes, shard.rows, shard.xxh3):
        raise DataError(
            f"{path}: the shard is not the one that was published (checksum differs); restore it or generate again"
        )

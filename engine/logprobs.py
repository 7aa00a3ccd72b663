"""Log-probabilities of the teacher's answers, beside the kept shards: written by `generate`, read by `topk_kd`.

A file a kept shard, a record a row in the order of the shard's rows: the tokens that were sampled, the K likeliest
tokens at each of their places, and the log-probabilities of both, before temperature and filters. Promises that a
record is whole or an error: each ends with a checksum of its own, and its row's id is in it.

    record   u32 bytes of what follows, u16 bytes of the id, id, u32 T, u32 K, then little-endian arrays:
             token_ids i32 (T,), topk_ids i32 (T, K), topk_logprobs f16 (T, K), sampled_logprobs f16 (T,); u64 xxh3
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import xxhash

from engine.errors import DataError, MissingError
from engine.leftovers import unpublished
from engine.shards import Manifest, Shard, Sidecar, read_lines, read_manifest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int32]
    Halves = npt.NDArray[np.float16]

_SIZE = struct.Struct("<I")
_ID = struct.Struct("<H")
_SHAPE = struct.Struct("<II")
_CHECK = struct.Struct("<Q")


class Logprobs(NamedTuple):
    """One row's: T sampled tokens, K candidates at each place, likeliest first."""

    id: str
    """The id of the row."""
    token_ids: Ints
    """What was sampled, with the token that ended the answer where one did: (T,)."""
    topk_ids: Ints
    """(T, K)."""
    topk_logprobs: Halves
    """(T, K)."""
    sampled_logprobs: Halves
    """(T,)."""


def read_logprobs(folder: Path) -> Iterator[Logprobs]:
    """Yield the log-probabilities of a run's kept rows, in the order of the rows.

    Raises: MissingError where the run captured none, DataError where a file is not the one that was published.
    """
    manifest = read_manifest(folder)
    shards = manifest.of("kept")
    if not any(shard.logprobs for shard in shards):
        raise MissingError(f"{folder} holds no log-probabilities; generate with sampling.logprobs = 20, for example")
    for shard in shards:
        if shard.logprobs is None:
            raise DataError(f"{folder / shard.file}: the manifest names no log-probabilities for it; generate again")
        yield from _read(folder, shard.logprobs)


def check_logprobs(folder: Path, shard: Shard) -> None:
    """Check that a kept shard's log-probabilities are those of its rows, in their order.

    Raises: DataError where a file is not the one that was published, or a row and a record differ.
    """
    assert shard.logprobs is not None
    path = folder / shard.logprobs.file
    records = _read(folder, shard.logprobs)
    for number, line in enumerate(read_lines(folder, shard), start=1):
        row, record = msgspec.json.decode(line, type=_Row), next(records, None)
        if record is None or record.id != row.id or len(record.token_ids) != row.output_tokens:
            raise DataError(f"{path}: record {number} is not that of row {row.id}; generate again")
    if next(records, None) is not None:
        raise DataError(f"{path}: holds more records than {shard.file} has rows; generate again")


def check_present(folder: Path, manifest: Manifest) -> None:
    """Check, without reading them, that the files which the manifest names are there and as long as they were.

    Raises: DataError.
    """
    for sidecar in (shard.logprobs for shard in manifest.shards if shard.logprobs):
        path = folder / sidecar.file
        if not path.is_file() or path.stat().st_size != sidecar.bytes:
            raise DataError(f"{path}: missing or cut, though the manifest names it; restore it or generate again")


def left_records(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the whole records of files that were not published, by row id; what follows a torn one is dropped."""
    found: dict[str, bytes] = {}
    for path in unpublished(folder, manifest, "logprobs"):
        data = path.read_bytes()
        start = 0
        while (end := _end(data, start)) is not None:
            found[_id(data, start)] = data[start:end]
            start = end
    return found


def pack(token_ids: Any, topk_ids: Any, topk_logprobs: Any, sampled_logprobs: Any) -> bytes:
    """Return what a record holds besides the id: T tokens and T x K candidates, as arrays or nested lists."""
    import numpy as np

    ids = np.asarray(topk_ids, dtype="<i4")
    places = len(token_ids)
    ids = ids.reshape(places, -1) if places else ids.reshape(0, 0)
    return b"".join(
        (
            _SHAPE.pack(*ids.shape),
            np.asarray(token_ids, dtype="<i4").tobytes(),
            ids.tobytes(),
            np.asarray(topk_logprobs, dtype="<f2").tobytes(),
            np.asarray(sampled_logprobs, dtype="<f2").tobytes(),
        )
    )


def record(row_id: str, packed: bytes) -> bytes:
    """Return the record of one row."""
    name = row_id.encode()
    body = _ID.pack(len(name)) + name + packed
    head = _SIZE.pack(len(body) + _CHECK.size)
    return head + body + _CHECK.pack(xxhash.xxh3_64_intdigest(head + body))


class _Row(msgspec.Struct):
    id: str
    output_tokens: int = 0


def _read(folder: Path, sidecar: Sidecar) -> Iterator[Logprobs]:
    path = folder / sidecar.file
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing, though the manifest names it; restore it or generate again") from None
    if (len(data), xxhash.xxh3_128_hexdigest(data)) != (sidecar.bytes, sidecar.xxh3):
        raise DataError(f"{path}: not the file that was published (checksum differs); restore it or generate again")
    yield from _records(path, data)


def _records(path: Path, data: bytes) -> Iterable[Logprobs]:
    start = 0
    while start < len(data):
        end = _end(data, start)
        if end is None:
            raise DataError(f"{path}: the record at byte {start:,} is torn; generate again")
        yield _unpack(_id(data, start), data, start, end)
        start = end


def _end(data: bytes, start: int) -> int | None:
    """Return where the record that begins at `start` ends, or None where there is no whole one."""
    if start + _SIZE.size > len(data):
        return None
    (size,) = _SIZE.unpack_from(data, start)
    end: int = start + _SIZE.size + size
    if end > len(data) or size < _ID.size + _SHAPE.size + _CHECK.size:
        return None
    (check,) = _CHECK.unpack_from(data, end - _CHECK.size)
    return end if xxhash.xxh3_64_intdigest(memoryview(data)[start : end - _CHECK.size]) == check else None


def _id(data: bytes, start: int) -> str:
    (length,) = _ID.unpack_from(data, start + _SIZE.size)
    begin = start + _SIZE.size + _ID.size
    return data[begin : begin + length].decode()


def _unpack(row_id: str, data: bytes, start: int, end: int) -> Logprobs:
    import numpy as np

    place = start + _SIZE.size + _ID.size + len(row_id.encode())
    tokens, width = _SHAPE.unpack_from(data, place)
    place += _SHAPE.size
    arrays: list[Any] = []
    for kind, shape in (("<i4", (tokens,)), ("<i4", (tokens, width)), ("<f2", (tokens, width)), ("<f2", (tokens,))):
        array = np.frombuffer(data, dtype=kind, count=int(np.prod(shape)), offset=place).reshape(shape)
        place += array.nbytes
        arrays.append(array)
    if place != end - _CHECK.size:
        raise DataError(f"row {row_id}: a record of log-probabilities is not as long as it says; generate again")
    return Logprobs(row_id, *arrays)

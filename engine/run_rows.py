"""The rows of an earlier run, kept and rejected ones in the order in which they were judged, to be judged again.

Promises that what the earlier filter put into a row is taken out again, and nothing else. A row whose generation was
ended early is marked by `aborted`: its output is not known whole. Prompts that were never asked, or failed, have no
output and are left out. Reads runs of `generate` (by `index`) and of `filter` (by `row_number`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine.columns import MARKS
from engine.errors import DataError
from engine.rows import Outcome
from engine.shards import MANIFEST, Manifest, published_rows, read_lines, read_manifest

BATCH_ROWS = 256
OWN = "_of_input"
"""Put behind the name of a field of the input that is called like a mark."""


def is_run(path: Path) -> bool:
    """Say whether a folder is a run."""
    return (path / MANIFEST).is_file()


def run_lines(folder: Path, *, skip: int = 0) -> Iterator[list[bytes]]:
    """Yield the lines of a run in the order in which they were judged, without the first `skip`.

    Raises: DataError where a shard is not the one that was published.
    """
    manifest = read_manifest(folder)
    lines = _of_filter(folder, manifest) if "sources" in manifest.fingerprint else _of_generate(folder, manifest)
    rest = islice(lines, skip, None)
    while batch := list(islice(rest, BATCH_ROWS)):
        yield batch


class _Index(msgspec.Struct):
    index: int


def _of_generate(folder: Path, manifest: Manifest) -> Iterator[bytes]:
    decoder = msgspec.json.Decoder(_Index)

    def numbered(kind: Outcome) -> Iterator[tuple[int, bytes]]:
        for shard in manifest.of(kind):
            for line, row in published_rows(folder, shard, decoder.decode):
                yield row.index, unmarked(line) if kind == "rejected" else line

    for _, line in heapq.merge(numbered("kept"), numbered("rejected"), key=lambda item: item[0]):
        yield line


class _Number(msgspec.Struct):
    row_number: int


def _of_filter(folder: Path, manifest: Manifest) -> Iterator[bytes]:
    for kind, line in filtered_lines(folder, manifest):
        if kind != "failed":
            yield line if kind == "kept" else unmarked(line)


def filtered_lines(folder: Path, manifest: Manifest) -> Iterator[tuple[Outcome, bytes]]:
    """Yield every line of a run of `filter` in the order of its input.

    Kept rows have no number: they fill the numbers that the others leave.

    Raises: DataError where a shard is not the one that was published, or one is gone.
    """
    decoder = msgspec.json.Decoder(_Number)
    kept = (line for shard in manifest.of("kept") for line in read_lines(folder, shard))

    def numbered(kind: Outcome) -> Iterator[tuple[int, Outcome, bytes]]:
        for shard in manifest.of(kind):
            for line, row in published_rows(folder, shard, decoder.decode):
                yield row.row_number, kind, line

    number = 0
    kinds: tuple[Outcome, ...] = ("rejected", "skipped", "failed")
    for place, kind, line in heapq.merge(*map(numbered, kinds), key=lambda item: item[0]):
        between = list(islice(kept, place - number))
        if len(between) != place - number:
            raise DataError(f"{folder}: {place} kept rows are missing before row {place}; was a shard removed?")
        yield from (("kept", one) for one in between)
        number = place + 1
        yield kind, line
    yield from (("kept", one) for one in kept)


def unmarked(line: bytes) -> bytes:
    """Take out of a rejected row what the filter put in."""
    start = line.rfind(b',"rule":"')
    # What `filter` put in stands at the end, and no text in JSON holds a bare quotation mark.
    if start > 0 and b'"row_number":' in line[start:] and OWN.encode() not in line:
        return line[:start] + b"}\n"
    fields: dict[str, Any] = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    for mark in MARKS:
        fields.pop(mark, None)
    for name in [name for name in fields if name.endswith(OWN) and name.partition(OWN)[0] in MARKS]:
        fields[name.removesuffix(OWN)] = fields.pop(name)
    return msgspec.json.encode(fields) + b"\n"

"""The folder that `filter` writes: opened new, or as it was left; rows are counted, written and published together.

Promises that the manifest names, with every shard, how far the sources were read by then, and that a folder goes on
only under the settings that it began with. Knows nothing of the command line.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from engine import __version__
from engine import config as configuration
from engine.columns import BadLine, Batch, Columns, Parsed, Parser
from engine.config import Config
from engine.errors import DataError, DiskError, Interrupted, PotstillError, UsageError
from engine.filter import DUPLICATE, RULES, Filter
from engine.filter_batch import BatchFilter, Judged
from engine.leftovers import discard_unpublished
from engine.lock import locked
from engine.named_files import digests
from engine.part import Pieces
from engine.readers import Position
from engine.robust_sample import MOST_ROWS, RobustSample
from engine.rows import Outcome
from engine.run_rows import filtered_lines
from engine.run_settings import refuse_changed
from engine.shards import (
    MANIFEST,
    Manifest,
    ShardWriter,
    disk,
    read_lines,
    read_manifest,
    replace_file,
    write_manifest,
)
from engine.standard_output import give_up

if TYPE_CHECKING:
    from engine.filter_chunk import Chunk
    from engine.filter_native import NativeFilter

Item = TypeVar("Item")

FAILED_CHARS = 10_000
"""A bad line is written to the failed shard up to so many characters; its source keeps the rest."""


def fingerprint(settings: Config, sources: Sequence[str], columns: Columns) -> dict[str, Any]:
    """Return everything that decides which rows come out, under its dotted key."""
    flat = configuration.flatten(settings)
    chosen = {key: value for key, value in flat.items() if key.startswith("filter.") and key != "filter.early"}
    chosen.update({f"columns.{name}": value for name, value in msgspec.to_builtins(columns).items()})
    chosen["sources"] = [os.path.abspath(source) if source != "-" else source for source in sources]
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(chosen))
    return found | digests(settings.filter, "filter")


class Chosen(NamedTuple):
    """How a run judges."""

    rules: Filter
    aborted: bool
    """Rows may come whose generation was ended early."""
    native: NativeFilter | None
    """The compiled filter, where it can be had and knows the rules."""


class FilterFolder:
    """An open output folder and the filter that fills it."""

    def __init__(
        self, folder: Path, manifest: Manifest, settings: Config, writer: ShardWriter | StdoutWriter, chosen: Chosen
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.settings = settings
        self.filter = BatchFilter(chosen.rules, aborted=chosen.aborted)
        self.native = chosen.native
        self.counts: Counter[str] = Counter()
        self.rules: Counter[str] = Counter(dict.fromkeys(RULES, 0))
        self.writer = writer
        self.last_failure = ""
        self._robust = RobustSample(settings.filter)

    def take(self, parser: Parser, batch: Batch, *, strict: bool) -> None:
        """Judge a batch and write what became of it."""
        scan = self.filter.scan(batch.data, batch.lines)
        parsed = parser.parse(batch)
        if parsed.data is not batch.data:
            scan = self.filter.scan(parsed.data, parsed.lines)
        first = self.counts["asked"]
        self.counts["asked"] += len(parsed.rows) + len(parsed.bad)
        numbers: Sequence[int] = range(first, self.counts["asked"])
        if parsed.bad:
            numbers = self._fail(parsed, batch, numbers, strict=strict)
        judged = self.filter.judge(parsed, numbers, scan)
        self._write(judged)
        if self._robust.due:
            chosen = set(map(id, judged.kept))
            both = zip(parsed.lines, parsed.rows, strict=True)
            self._robust.look([row.output for line, row in both if id(line) in chosen])

    def take_chunk(self, native: NativeFilter, chunk: Chunk, *, strict: bool) -> None:
        """Do the same for a chunk that is scanned."""
        first = self.counts["asked"]
        self.counts["asked"] += chunk.count - chunk.blank
        if chunk.bad:
            self._fail_lines(chunk.name, chunk.bad_lines(first), strict=strict)
        self._write(native.judge(chunk, first))
        if self._robust.due:
            self._robust.look(native.outputs(chunk, MOST_ROWS))

    def _write(self, judged: Judged) -> None:
        self.rules.update(judged.rules)
        self.counts["kept"] += judged.keeps
        self.counts["skipped"] += judged.skips
        self.writer.append("kept", judged.kept, rows=judged.keeps)
        self.writer.append("rejected", judged.rejected, rows=judged.rules.total())
        self.writer.append("skipped", judged.skipped, rows=judged.skips)

    def _fail(self, parsed: Parsed, batch: Batch, numbers: Sequence[int], *, strict: bool) -> list[int]:
        """Write the bad lines of a batch and return the numbers of its rows, between which they stand."""
        failed = {numbers[place]: bad for place, bad in zip(parsed.bad_places, parsed.bad, strict=True)}
        self._fail_lines(batch.name, failed, strict=strict)
        return [number for number in numbers if number not in failed]

    def _fail_lines(self, name: str, failed: Mapping[int, BadLine], *, strict: bool) -> None:
        """Write bad lines, by their number in the input."""
        if strict:
            bad = next(iter(failed.values()))
            raise DataError(f"{name}:{bad.number}: {bad.reason}; mend the line, or leave out --strict")
        self.writer.append("failed", [_failed_line(name, bad, number) for number, bad in failed.items()])
        self.counts["failed"] += len(failed)
        bad = list(failed.values())[-1]
        self.last_failure = f"{name}:{bad.number}: {bad.reason}"

    def publish(self, position: Position) -> None:
        """Publish what is written, together with how far the sources are read."""
        self.manifest.position = msgspec.to_builtins(position)
        self.writer.publish()

    def finish(self, seconds: float) -> dict[str, Any]:
        """Check the counts, write the summary and return it."""
        total = self.counts["kept"] + self.counts["failed"] + self.counts["skipped"] + self.rules.total()
        if total != self.counts["asked"]:
            raise PotstillError(
                f"counts do not add up: {self.counts['asked']} rows, {total} accounted for; report this"
            )
        self.manifest.summary = {
            "asked": self.counts["asked"],
            "kept": self.counts["kept"],
            "rejected": dict(self.rules),
            "skipped": self.counts["skipped"],
            "failed": self.counts["failed"],
            "seconds": round(seconds, 3),
            "run": str(self.folder),
            **self._robust.summary(),
        }
        self.manifest.finished = True
        self.writer.publish()
        return self.manifest.summary

    def restore(self, columns: Columns) -> None:
        """Rebuild seen keys, caps and counts from the published shards."""
        parser = Parser(columns, {*self.filter.fields(), "rule"})
        for shard in self.manifest.shards:
            self.counts["asked"] += shard.rows
            if shard.kind in ("failed", "skipped"):
                self.counts[shard.kind] += shard.rows
                continue
            for lines in _chunks(read_lines(self.folder, shard)):
                self._take_in(parser.parse(Batch(shard.file, 1, lines)), shard.kind)
        if self.filter.filter.optional:
            judged = (item for item in filtered_lines(self.folder, self.manifest) if item[0] in ("kept", "rejected"))
            for chunk in _chunks(judged):
                parsed = parser.parse(Batch("", 1, [line for _, line in chunk]))
                self.filter.show(parsed.rows, [kind == "kept" for kind, _ in chunk])

    def _take_in(self, parsed: Parsed, kind: Outcome) -> None:
        if parsed.bad:
            raise DataError(
                f"{self.folder}: a published {kind} row cannot be read ({parsed.bad[0].reason}); start again"
            )
        kept, lines = kind == "kept", parsed.lines
        if kept:
            self.counts["kept"] += len(parsed.rows)
        else:
            self.rules.update(row.rule for row in parsed.rows)
            both = zip(parsed.lines, parsed.rows, strict=True)
            lines = [line for line, row in both if row.rule != DUPLICATE.rule]
        if self.native is None:
            self.filter.restore(parsed.rows, kept=kept)
        elif lines:
            self.native.restore(b"".join(lines), kept=kept)


class StdoutWriter:
    """Stands in for shards: kept lines go to standard output, the others nowhere."""

    due = False

    def append(self, kind: Outcome, lines: Pieces, *, rows: int | None = None) -> None:
        """Write kept lines."""
        if kind != "kept":
            return
        try:
            with disk(Path("standard output")):
                sys.stdout.buffer.writelines(lines)
                sys.stdout.buffer.flush()
        except DiskError as error:
            give_up()
            if not isinstance(error.__cause__, BrokenPipeError):
                raise
            raise Interrupted("whoever read standard output has stopped reading; the rest is not filtered") from None

    def publish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def position_after(position: dict[str, int], sources: int) -> Position:
    """Return the position behind the last source."""
    return Position(source=max(sources, position.get("source", 0)))


@contextmanager
def open_folder(
    folder: Path, settings: Config, wanted: dict[str, Any], chosen: Chosen, *, zstd: bool
) -> Iterator[FilterFolder]:
    """Open a folder, new or as it was left, locked against a second process.

    Raises: ConfigError where a setting has changed, UsageError where the folder holds something else.
    """
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            refuse_changed(folder, manifest.fingerprint, wanted)
        else:
            _check_empty(folder)
            replace_file(folder / "config.toml", configuration.dump(settings))
            manifest = Manifest(fingerprint=wanted, versions=_versions())
            write_manifest(folder, manifest)
        discard_unpublished(folder, manifest)
        writer = ShardWriter(folder, manifest, shard_bytes=settings.output.shard_bytes, zstd=zstd)
        run = FilterFolder(folder, manifest, settings, writer, chosen)
        try:
            yield run
        finally:
            run.writer.close()


def _check_empty(folder: Path) -> None:
    stray = next(iter(sorted(folder.glob("*.jsonl*"))), None)
    if stray is not None:
        raise UsageError(f"{folder} holds {stray.name} but no {MANIFEST}; choose another --out, or remove the files")


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "potstill": __version__}


def _failed_line(name: str, bad: BadLine, number: int) -> bytes:
    text = bad.line[: 4 * FAILED_CHARS].decode("utf-8", "replace").rstrip("\r\n")
    line = {"at": f"{name}:{bad.number}", "reason": bad.reason, "row_number": number, "text": text[:FAILED_CHARS]}
    return msgspec.json.encode(line) + b"\n"


def _chunks(items: Iterator[Item], size: int = 256) -> Iterator[list[Item]]:
    while chunk := list(islice(items, size)):
        yield chunk

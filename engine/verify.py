"""Verify a run: checksums, counts, order, and that its filter gives the same verdicts again.

Reads only what is on disk. Promises to name the first thing that is wrong.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.columns import Batch, Columns, Parser
from engine.errors import ConfigError, DataError
from engine.explain import filter_settings
from engine.filter import QUOTA, RULES, Filter
from engine.filter_batch import BatchFilter
from engine.logprobs import check_logprobs
from engine.named_files import digests
from engine.rows import OUTCOMES, Outcome, Row, Verdict
from engine.run_rows import is_run, run_lines
from engine.shards import Manifest, Shard, check_shard, published_rows, read_lines, read_manifest
from engine.tally import Tally


def verify(folder: Path) -> dict[str, Any]:
    """Check a run folder and return its counts.

    Raises: DataError naming the shard or the row that is wrong, ConfigError where its filter is not what it was.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        check_shard(folder, shard)
        if shard.logprobs is not None:
            check_logprobs(folder, shard)
        elif shard.kind == "kept" and manifest.fingerprint.get("sampling.logprobs"):
            raise DataError(f"{folder / shard.file}: has no log-probabilities, though they were asked for")
    if "sources" in manifest.fingerprint:
        return _verify_filtered(folder, manifest)
    tally, rules = Tally(), Filter(_settings(folder, manifest), manifest.fingerprint.get("output.quotas"))
    for expected, (index, outcome, row, shard) in enumerate(_in_order(folder, manifest)):
        where = f"{folder / shard.file}: row {row.id}"
        if index != expected:
            raise DataError(f"{where} has index {index} where {expected} was due; a row is lost or doubled")
        _check_verdict(rules, outcome, row, where)
        tally.add(outcome, row)
    tally.check()
    _check_summary(folder, manifest, tally)
    return {**tally.summary(), "shards": len(manifest.shards), "finished": manifest.finished, "run": str(folder)}


def _settings(folder: Path, manifest: Manifest) -> configuration.Filter:
    """Return the filter's settings, when the files that they name say what they said.

    Raises: ConfigError naming the file that does not.
    """
    settings = filter_settings(manifest)
    for key, now in digests(settings, "filter").items():
        before = manifest.fingerprint.get(key, now)
        if before != now:
            raise ConfigError(
                f"{key} is no longer the file that {folder} was judged with (its hash was {before}, and is {now}), so "
                "its rows cannot be judged again; put it back"
            )
    return settings


def _check_verdict(rules: Filter, outcome: Outcome, row: Row, where: str) -> None:
    if outcome == "rejected" and row.aborted and row.rule != QUOTA:
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


def _verify_filtered(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Check what `potstill filter` wrote: judge the rows again in the order of the input, and compare what is kept."""
    counts = Counter({kind: sum(shard.rows for shard in manifest.of(kind)) for kind in OUTCOMES})
    rules = None if _ended_early(folder, manifest) else _judge_again(folder, manifest)
    summary: dict[str, Any] = {"asked": counts.total(), "kept": counts["kept"]}
    if rules is not None:
        summary["rejected"] = {**dict.fromkeys(RULES, 0), **rules}
    summary |= {"skipped": counts["skipped"], "failed": counts["failed"]}
    for key, found in summary.items() if manifest.finished else ():
        if manifest.summary.get(key) != found:
            raise DataError(f"{folder}: the manifest says {key} = {manifest.summary.get(key)}, the shards hold {found}")
    return {**summary, "shards": len(manifest.shards), "finished": manifest.finished, "run": str(folder)}


def _ended_early(folder: Path, manifest: Manifest) -> bool:
    """Say whether the rows came from a run, where some may have been ended early: those cannot be judged again."""
    return any(is_run(Path(source)) for source in manifest.fingerprint["sources"])


def _judge_again(folder: Path, manifest: Manifest) -> Counter[str]:
    """Return how many rows each rule rejects.

    Raises: DataError where another row is kept than the one that is filed as kept.
    """
    names = {
        key.removeprefix("columns."): value for key, value in manifest.fingerprint.items() if key.startswith("columns.")
    }
    judge = BatchFilter(Filter(_settings(folder, manifest)))
    parser = Parser(Columns(**names), judge.fields())
    kept = (line for shard in manifest.of("kept") for line in read_lines(folder, shard))
    rules: Counter[str] = Counter()
    for lines in run_lines(folder):
        batch = Batch(str(folder), 1, lines)
        parsed = parser.parse(batch)
        if parsed.bad:
            raise DataError(f"{folder}: a filed row cannot be read: {parsed.bad[0].reason}")
        judged = judge.judge(parsed, range(len(parsed.rows)), judge.scan(parsed.data, parsed.lines))
        rules.update(judged.rules)
        for line in judged.kept:
            if next(kept, None) != line:
                raise DataError(f"{folder}: the filter keeps a row that is not filed as kept here: {line[:120]!r}")
    if next(kept, None) is not None:
        raise DataError(f"{folder}: more rows are filed as kept than the filter keeps")
    return +rules


def _in_order(folder: Path, manifest: Manifest) -> Iterator[tuple[int, Outcome, Row, Shard]]:
    """Merge the kinds of shards into prompt order; each kind is in order by itself."""

    def rows(kind: Outcome) -> Iterator[tuple[int, Outcome, Row, Shard]]:
        for shard in manifest.of(kind):
            for _, row in published_rows(folder, shard, msgspec.json.Decoder(Row).decode):
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

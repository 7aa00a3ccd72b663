"""Where the filter's time goes: the same batches taken one stage further at a time.

A stage's cost is the difference to the stage before, so it includes what it does to the caches of the others.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from engine import config as configuration
from engine.columns import Batch, Columns, Parser
from engine.filter import Filter
from engine.filter_batch import BatchFilter
from engine.part import Pieces
from engine.readers import BATCH_BYTES, Position, read
from engine.rows import Outcome
from engine.shards import Manifest, ShardWriter

STAGES = ("read", "scan", "parse", "keys", "judge", "write")
"""`write` is shards, checksums, fsync and manifest."""


def measure_stages(source: Path, *, rounds: int) -> dict[str, float]:
    """Return CPU microseconds a row by stage, their sum, and those of only copying the bytes; best of the rounds."""
    with source.open("rb") as file:
        rows = sum(1 for _ in file)
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, work in [("bytes", _copy), *((stage, _through(stage)) for stage in STAGES)]:
            with tempfile.TemporaryDirectory(dir=source.parent) as folder:
                start = time.process_time()
                work(source, Path(folder))
                spent = (time.process_time() - start) * 1e6 / rows
            best[name] = min(best.get(name, spent), spent)
    costs = {"bytes only": round(best["bytes"], 3)}
    before = 0.0
    for stage in STAGES:
        costs[stage] = round(max(0.0, best[stage] - before), 3)
        before = best[stage]
    return {**costs, "sum": round(before, 3)}


def _copy(source: Path, folder: Path) -> None:
    with source.open("rb", buffering=0) as file, (folder / "copy").open("wb", buffering=0) as target:
        while chunk := file.read(BATCH_BYTES):
            target.write(chunk)
        os.fsync(target.fileno())


def _through(last: str) -> Callable[[Path, Path], None]:
    """Return the pipeline up to a stage."""

    def run(source: Path, folder: Path) -> None:
        state = _Stages(folder, STAGES.index(last))
        for batch, _ in read([str(source)], Position()):
            state.take(batch)
        state.close()

    return run


class _Stages:
    def __init__(self, folder: Path, last: int) -> None:
        settings = configuration.Config()
        self._last = last
        self._filter = BatchFilter(Filter(settings.filter))
        self._parser = Parser(Columns(), self._filter.fields())
        self._writer = ShardWriter(folder, Manifest(), shard_bytes=settings.output.shard_bytes)
        self._rows = 0

    def take(self, batch: Batch) -> None:
        if self._last == STAGES.index("read"):
            return
        scan = self._filter.scan(batch.data, batch.lines)
        if self._last == STAGES.index("scan"):
            return
        parsed = self._parser.parse(batch)
        if self._last == STAGES.index("keys"):
            self._filter.keys(parsed.rows)
        if self._last >= STAGES.index("judge"):
            judged = self._filter.judge(parsed, range(self._rows, self._rows + len(parsed.rows)), scan)
            self._rows += len(parsed.rows)
            if self._last == STAGES.index("write"):
                self._write("kept", judged.kept, len(judged.kept))
                self._write("rejected", judged.rejected, judged.rules.total())

    def _write(self, kind: Outcome, pieces: Pieces, rows: int) -> None:
        self._writer.append(kind, pieces, rows=rows)
        if self._writer.due:
            self._writer.publish()

    def close(self) -> None:
        if self._last == STAGES.index("write"):
            self._writer.publish()
        self._writer.close()

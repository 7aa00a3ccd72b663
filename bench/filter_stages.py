"""Where the filter's time goes: the same rows taken one stage further at a time, compiled and in Python.

A stage's cost is the difference to the stage before, so it includes what it does to the caches of the others.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from engine import config as configuration
from engine.columns import Columns, Parser
from engine.filter import Filter
from engine.filter_batch import BatchFilter, Judged
from engine.filter_native import NativeFilter
from engine.filter_workers import CHUNK_BYTES, scanned
from engine.native.load import Run, load_kernel
from engine.readers import Position, read, read_pieces
from engine.shards import Manifest, ShardWriter

STAGES = {
    "compiled": ("read", "parse", "phrases", "judge", "write"),
    "python": ("read", "scan", "parse", "judge", "write"),
}
"""`parse` is fields, lengths and keys where compiled; `judge` the tables, verdicts and the lines laid out; `write` is
shards, checksums, fsync and manifest."""
Work = Callable[[Path, Path], None]


def measure_stages(source: Path, *, rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU microseconds a row by stage, their sum, and those of only copying the bytes; best of the rounds."""
    with source.open("rb") as file:
        rows = sum(1 for _ in file)
    run = load_kernel(build=False)
    found = {}
    if run is not None:
        found["compiled"] = _measure(source, rows, rounds, STAGES["compiled"], _compiled(run))
    return found | {"python": _measure(source, rows, rounds, STAGES["python"], _in_python)}


def _measure(
    source: Path, rows: int, rounds: int, stages: Sequence[str], through: Callable[[str], Work]
) -> dict[str, float]:
    best: dict[str, float] = {}
    works: Mapping[str, Work] = {"bytes": _copy, **{stage: through(stage) for stage in stages}}
    for _ in range(rounds):
        for name, work in works.items():
            with tempfile.TemporaryDirectory(dir=source.parent) as folder:
                start = time.process_time()
                work(source, Path(folder))
                spent = (time.process_time() - start) * 1e6 / rows
            best[name] = min(best.get(name, spent), spent)
    costs = {"bytes only": round(best["bytes"], 3)}
    before = 0.0
    for stage in stages:
        costs[stage] = round(max(0.0, best[stage] - before), 3)
        before = best[stage]
    return {**costs, "sum": round(before, 3)}


def _copy(source: Path, folder: Path) -> None:
    with source.open("rb", buffering=0) as file, (folder / "copy").open("wb", buffering=0) as target:
        while chunk := file.read(CHUNK_BYTES):
            target.write(chunk)
        os.fsync(target.fileno())


def _compiled(run: Run) -> Callable[[str], Work]:
    def through(last: str) -> Work:
        def work(source: Path, folder: Path) -> None:
            pieces = read_pieces([str(source)], piece_bytes=CHUNK_BYTES)
            if last == "read":
                for _ in pieces:
                    pass
                return
            settings = configuration.Filter()
            if last == "parse":
                settings = msgspec.structs.replace(settings, phrases=())
            native, rows = NativeFilter(Filter(settings), Columns(), run), 0
            with _Writer(folder) as writer:
                for chunk, _ in scanned(native, pieces, workers=0):
                    if last in ("judge", "write"):
                        judged = native.judge(chunk, rows)
                        rows += chunk.count
                        if last == "write":
                            writer.take(judged)

        return work

    return through


def _in_python(last: str) -> Work:
    def work(source: Path, folder: Path) -> None:
        rules, rows = BatchFilter(Filter(configuration.Filter())), 0
        parser = Parser(Columns(), rules.fields())
        with _Writer(folder) as writer:
            for batch, _ in read([str(source)], Position()):
                if last == "read":
                    continue
                scan = rules.scan(batch.data, batch.lines)
                if last == "scan":
                    continue
                parsed = parser.parse(batch)
                if last != "parse":
                    judged = rules.judge(parsed, range(rows, rows + len(parsed.rows)), scan)
                    rows += len(parsed.rows)
                    if last == "write":
                        writer.take(judged)

    return work


class _Writer:
    def __init__(self, folder: Path) -> None:
        settings = configuration.Config()
        self._writer = ShardWriter(folder, Manifest(), shard_bytes=settings.output.shard_bytes)
        self._used = False

    def take(self, judged: Judged) -> None:
        self._used = True
        self._writer.append("kept", judged.kept, rows=judged.keeps)
        self._writer.append("rejected", judged.rejected, rows=judged.rules.total())
        if self._writer.due:
            self._writer.publish()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._used:
            self._writer.publish()
        self._writer.close()

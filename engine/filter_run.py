"""`potstill filter`: rows that exist already -> kept, rejected and failed shards, in one pass.

Promises that every row ends as exactly one of kept, rejected or failed, that the kept rows are those of the four list
passes in the law of the filter, in input order and byte for byte, and that a run which is killed anywhere goes on
with the same rows. A bad line is data and never ends the run, unless `--strict`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.columns import Columns, Parser
from engine.command import path_of, set_argument, whole
from engine.config import Config
from engine.errors import UsageError
from engine.filter import Filter
from engine.filter_folder import Chosen, FilterFolder, StdoutWriter, fingerprint, open_folder, position_after
from engine.funnel import funnel_line, yield_warning
from engine.native.load import load_kernel
from engine.progress import note
from engine.readers import BATCH_BYTES, STDIN, Position, read, read_pieces
from engine.run_rows import is_run
from engine.shards import Manifest

DEFAULT_COLUMNS = Columns()
COMPILE_BYTES = 1 << 28
"""Sources from this size on are worth the ten seconds that compiling takes, where it was not done before."""
MOST_WORKERS = 256
"""Each holds some megabytes, and more than a machine has cores gain nothing."""
COLUMNS = ("instruction", "input", "output", "template")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill filter`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="rows: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .arrow, a dataset saved to disk, a run (its kept and "
        "rejected rows, under the run's own settings but for --set), or - for standard input",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=path_of,
        metavar="DIR",
        help="folder to write or to go on with; - writes kept rows to standard output, the summary to standard error",
    )
    parser.add_argument(
        "--config", type=path_of, metavar="FILE", help="configuration whose [filter] and [output] count"
    )
    set_argument(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first line that is not a row")
    parser.add_argument(
        "--workers",
        type=whole(0, MOST_WORKERS),
        default=0,
        metavar="N",
        help="threads that read rows ahead of the judging; the verdicts are the same (default: none)",
    )
    parser.add_argument("--zstd", action="store_true", help="compress the shards")
    for name in COLUMNS:
        parser.add_argument(f"--{name}", default=name, metavar="FIELD", help=f"what the rows call it (default: {name})")
    parser.add_argument("--messages", default="", metavar="FIELD", help="field that holds a chat instead")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run `potstill filter` and return its summary."""
    settings = configuration.load(_config_of(args.inputs, args.config), args.overrides)
    columns = _columns(args)
    if str(args.out) == STDIN:
        summary = _filter_to_stdout(args.inputs, settings, columns, strict=args.strict, workers=args.workers)
        note(msgspec.json.encode(summary).decode())
        return {}
    return filter_rows(
        args.inputs, args.out, settings, columns=columns, strict=args.strict, zstd=args.zstd, workers=args.workers
    )


def _columns(args: argparse.Namespace) -> Columns:
    """Return what the fields are called.

    Raises: UsageError where two of them are one.
    """
    names: dict[str, str] = {name: getattr(args, name) for name in COLUMNS}
    for (one, field), (other, same) in itertools.combinations(names.items(), 2):
        if field == same:
            raise UsageError(f"--{one} and --{other} are both {field!r}; name two fields")
    return Columns(messages=args.messages, **names)


def _filter_to_stdout(
    sources: Sequence[str], settings: Config, columns: Columns, *, strict: bool, workers: int
) -> dict[str, Any]:
    start = time.monotonic()
    chosen = _choose(sources, settings, columns, workers)
    run = FilterFolder(Path(STDIN), Manifest(), settings, StdoutWriter(), chosen)
    _drive(run, sources, columns, strict=strict, workers=workers)
    summary = run.finish(time.monotonic() - start)
    _tell(run, summary)
    return summary


def filter_rows(
    sources: Sequence[str],
    folder: Path,
    settings: Config,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    strict: bool = False,
    zstd: bool = False,
    workers: int = 0,
) -> dict[str, Any]:
    """Filter the rows of some sources into a folder, or go on where an earlier call was stopped.

    `workers` threads read rows ahead of the one that judges them; 0 does both in turn, which takes less CPU time.

    Raises: any PotstillError; what is published by then can be gone on with.
    """
    start = time.monotonic()
    _check_apart(sources, folder)
    wanted = fingerprint(settings, sources, columns)
    chosen = _choose(sources, settings, columns, workers)
    with open_folder(folder, settings, wanted, chosen, zstd=zstd) as run:
        if run.manifest.finished:
            note(f"{folder} is finished: {run.manifest.summary.get('kept', 0):,} rows kept; nothing to do")
            return run.manifest.summary
        run.restore(columns)
        _drive(run, sources, columns, strict=strict, workers=workers)
        summary = run.finish(time.monotonic() - start)
        _tell(run, summary)
    return summary


def _choose(sources: Sequence[str], settings: Config, columns: Columns, workers: int) -> Chosen:
    """Decide how the rows are judged: in compiled code where it can be had and knows the rules, else in Python."""
    rules, aborted = Filter(settings.filter), any(is_run(Path(source)) for source in sources)
    run = None
    if fits(rules, columns, aborted=aborted):
        run = load_kernel(build=_size(sources) >= COMPILE_BYTES)
    if run is None:
        if workers:
            note("--workers has no effect here: these rows are judged in Python, one after the other")
        return Chosen(rules, aborted, None)
    from engine.filter_native import NativeFilter

    return Chosen(rules, aborted, NativeFilter(rules, columns, run))


def fits(rules: Filter, columns: Columns, *, aborted: bool) -> bool:
    """Say whether the compiled code knows all rules that are set; the others need each row in Python anyway."""
    settings = rules.settings
    special = aborted or bool(rules.optional) or settings.cap_share > 0 or bool(settings.dedup_ignore)
    return not (special or columns.messages or rules.content.guard.robust)


def _size(sources: Sequence[str]) -> int:
    """Return the bytes of the sources that are files."""
    return sum(path.stat().st_size for source in sources if (path := Path(source)).is_file())


def _drive(run: FilterFolder, sources: Sequence[str], columns: Columns, *, strict: bool, workers: int) -> None:
    """Filter what the sources hold behind the position that the manifest names."""
    progress = _Progress()
    start = Position(**run.manifest.position)
    for position in _steps(run, sources, start, columns, strict=strict, workers=workers):
        if run.writer.due:
            run.publish(position)
        progress.tick(run.counts)
    run.publish(position_after(run.manifest.position, len(sources)))


def _steps(
    run: FilterFolder, sources: Sequence[str], start: Position, columns: Columns, *, strict: bool, workers: int
) -> Iterator[Position]:
    """Filter batch by batch and yield how far the sources are read."""
    if run.native is None:
        parser = Parser(columns, run.filter.fields())
        for batch, position in read(sources, start):
            run.take(parser, batch, strict=strict)
            yield position
        return
    from engine.filter_workers import CHUNK_BYTES, scanned

    source, line = start.source, start.line
    # A shard can only end where a piece does.
    size = min(CHUNK_BYTES, max(BATCH_BYTES, run.settings.output.shard_bytes))
    pieces = read_pieces(sources, start, piece_bytes=size)
    for chunk, piece in scanned(run.native, pieces, workers=workers):
        line = line if piece.source == source else 0
        source, chunk.first_line = piece.source, line + 1
        run.take_chunk(run.native, chunk, strict=strict)
        line += chunk.count
        yield Position(source, line, piece.offset)


def _tell(run: FilterFolder, summary: dict[str, Any]) -> None:
    """Say what a person wants to know at the end."""
    if 0 < summary["asked"] == summary["failed"]:
        note(
            f"no line of {summary['asked']:,} is a row ({run.last_failure}); give JSON Lines, one object a line, "
            "and name its fields with --instruction and --output"
        )
        return
    note(funnel_line(summary["asked"] - summary["failed"], summary["rejected"]))
    if summary["failed"]:
        note(f"{summary['failed']:,} lines are not rows (failed-*.jsonl); the last: {run.last_failure}")
    more = summary.get("robust_would_drop")
    if more and more["rows"]:
        note(
            f'filter.phrase_match = "robust" would drop {more["rows"]:,} more of {more["of"]:,} kept rows that were '
            "looked at: phrases spelled with other quotes, spaces or letters"
        )
    warning = yield_warning(summary["asked"], summary["kept"])
    if warning:
        note(warning)


def _config_of(sources: Sequence[str], given: Path | None) -> Path | None:
    """Return the configuration: the one given, else that of the run whose rows are filtered again."""
    runs = [Path(source) for source in sources if is_run(Path(source))]
    if given is None and len(runs) == 1 and (runs[0] / "config.toml").is_file():
        return runs[0] / "config.toml"
    return given


def _check_apart(sources: Sequence[str], folder: Path) -> None:
    for source in sources:
        # Not Path.resolve, which fails on a link to itself.
        if source != STDIN and os.path.realpath(source) == os.path.realpath(folder):
            raise UsageError(f"--out {folder} is where the rows come from; choose another folder")


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

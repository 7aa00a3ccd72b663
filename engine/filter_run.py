"""`potstill filter`: rows that exist already -> kept, rejected and failed shards, in one pass.

Promises that every row ends as exactly one of kept, rejected or failed, that the kept rows are those of the four list
passes in the law of the filter, in input order and byte for byte, and that a run which is killed anywhere goes on
with the same rows. A bad line is data and never ends the run, unless `--strict`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.columns import Columns, Parser
from engine.command import set_argument
from engine.config import Config
from engine.errors import UsageError
from engine.filter_folder import FilterFolder, StdoutWriter, fingerprint, open_folder, position_after
from engine.funnel import funnel_line, yield_warning
from engine.progress import note
from engine.readers import STDIN, Position, read
from engine.run_rows import is_run
from engine.shards import Manifest

DEFAULT_COLUMNS = Columns()
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
        type=Path,
        metavar="DIR",
        help="folder to write or to go on with; - writes kept rows to standard output, the summary to standard error",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration whose [filter] and [output] count")
    set_argument(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first line that is not a row")
    parser.add_argument("--zstd", action="store_true", help="compress the shards")
    for name in COLUMNS:
        parser.add_argument(f"--{name}", default=name, metavar="FIELD", help=f"what the rows call it (default: {name})")
    parser.add_argument("--messages", default="", metavar="FIELD", help="field that holds a chat instead")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run `potstill filter` and return its summary."""
    settings = configuration.load(_config_of(args.inputs, args.config), args.overrides)
    columns = Columns(messages=args.messages, **{name: getattr(args, name) for name in COLUMNS})
    if str(args.out) == STDIN:
        summary = _filter_to_stdout(args.inputs, settings, columns, strict=args.strict)
        note(msgspec.json.encode(summary).decode())
        return {}
    return filter_rows(args.inputs, args.out, settings, columns=columns, strict=args.strict, zstd=args.zstd)


def _filter_to_stdout(sources: Sequence[str], settings: Config, columns: Columns, *, strict: bool) -> dict[str, Any]:
    start = time.monotonic()
    aborted = any(is_run(Path(source)) for source in sources)
    run = FilterFolder(Path(STDIN), Manifest(), settings, StdoutWriter(), aborted=aborted)
    _drive(run, sources, columns, strict=strict)
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
) -> dict[str, Any]:
    """Filter the rows of some sources into a folder, or go on where an earlier call was stopped.

    Raises: any PotstillError; what is published by then can be gone on with.
    """
    start = time.monotonic()
    _check_apart(sources, folder)
    wanted = fingerprint(settings, sources, columns)
    again = any(is_run(Path(source)) for source in sources)
    with open_folder(folder, settings, wanted, zstd=zstd, aborted=again) as run:
        if run.manifest.finished:
            note(f"{folder} is finished: {run.manifest.summary.get('kept', 0):,} rows kept; nothing to do")
            return run.manifest.summary
        run.restore(columns)
        _drive(run, sources, columns, strict=strict)
        summary = run.finish(time.monotonic() - start)
        _tell(run, summary)
    return summary


def _drive(run: FilterFolder, sources: Sequence[str], columns: Columns, *, strict: bool) -> None:
    """Filter what the sources hold behind the position that the manifest names."""
    parser = Parser(columns, run.filter.fields())
    progress = _Progress()
    for batch, position in read(sources, Position(**run.manifest.position)):
        run.take(parser, batch, strict=strict)
        if run.writer.due:
            run.publish(position)
        progress.tick(run.counts)
    run.publish(position_after(run.manifest.position, len(sources)))


def _tell(run: FilterFolder, summary: dict[str, Any]) -> None:
    """Say what a person wants to know at the end."""
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
        if source != "-" and Path(source).resolve() == folder.resolve():
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

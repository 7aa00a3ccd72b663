"""Fuzz `potstill filter`: whatever the bytes, it ends in a good run or in one sentence, and its counts add up.

    python tests/fuzz_filter.py --minutes 10 [--seed 1] [--atheris] [--replay FILE]

Cases are tests/fuzz_cases.py. Where compiled code judges, Python judges too, and both must write the same. With
`--atheris` (pip install atheris) libFuzzer grows cases by coverage of the engine, else they are drawn at random. A
finding is saved as a file and shown; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz_cases import CONTROL_BYTES, FORMATS, drawn_case, lines, settings_of, write_source

SEEDS = 200
"""Cases that libFuzzer begins with; from none it would take minutes to get to a row."""


class Broken(Exception):  # noqa: N818
    """A promise that the filter did not keep."""


class Fuzz:
    """Runs cases in one folder and counts what became of them."""

    def __init__(self, folder: Path, found: Path) -> None:
        from engine.columns import Columns
        from engine.config import from_mapping
        from engine.errors import PotstillError
        from engine.filter import Filter
        from engine.filter_run import filter_rows, fits
        from engine.native.load import load_kernel
        from engine.shards import check_shard, read_lines, read_manifest
        from engine.verify import verify

        self.folder, self.found = folder, found
        self.counts: Counter[str] = Counter(compiled=load_kernel(build=True) is not None)
        self._rules, self._fits, self._lines = Filter, fits, read_lines
        self._columns, self._from_mapping, self._filter = Columns, from_mapping, filter_rows
        self._check, self._manifest, self._verify, self._sentence = check_shard, read_manifest, verify, PotstillError

    def one(self, data: bytes) -> None:
        """Run a case; a finding is kept as a file and told, and the next case comes."""
        self.counts["cases"] += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                self._run(data)
        except Exception as error:  # every kind of exception is what is looked for
            self.counts["findings"] += 1
            name = self.found / f"finding-{type(error).__name__}-{self.counts['findings']}"
            if self.counts["findings"] <= 20:
                self.found.mkdir(parents=True, exist_ok=True)
                name.write_bytes(data)
                print(f"{name}\n{traceback.format_exc(limit=-6)}", file=sys.stderr, flush=True)

    def _run(self, data: bytes) -> None:
        control, body = data[:CONTROL_BYTES].ljust(CONTROL_BYTES, b"\0"), data[CONTROL_BYTES:]
        chance = random.Random(control)
        form = FORMATS[control[0] % len(FORMATS)]
        self.counts[form] += 1
        source = write_source(self.folder, form, lines(body, control[6] % 3), chance)
        config, arguments = settings_of(control, chance)
        columns = self._columns(messages=arguments.pop("messages"), output=arguments.pop("output"))
        settings = self._from_mapping(config, where="fuzz")
        ends = []
        for native in ("1", "0") if self._fits(self._rules(settings.filter), columns, aborted=False) else ("1",):
            os.environ["POTSTILL_NATIVE"] = native
            run = partial(self._filter, [str(source)], settings=settings, columns=columns, **arguments)
            ends.append(self._end(run, self.folder / f"out{native}"))
        if len(ends) == 2:
            self.counts["compared"] += 1
            if ends[0] != ends[1]:
                raise Broken(f"compiled code and Python differ: {str(ends[0])[:500]} and {str(ends[1])[:500]}")

    def _end(self, run: Callable[..., dict[str, Any]], out: Path) -> Any:
        """Run one filter and return how it ended: its sentence, or its counts and all lines that it wrote."""
        try:
            summary = run(folder=out)
        except self._sentence as error:
            self.counts["sentences"] += 1
            if "\n" in str(error).strip() or len(str(error)) < 20:
                raise Broken(f"not one sentence: {error}") from error
            return str(error)
        self._look(out, summary)
        written: dict[str, list[bytes]] = {}
        for shard in self._manifest(out).shards:
            written.setdefault(shard.kind, []).extend(self._lines(out, shard))
        return {key: summary[key] for key in ("asked", "kept", "rejected", "failed", "skipped")}, written

    def _look(self, out: Path, summary: dict[str, Any]) -> None:
        """Compare counts with shards, and judge everything again."""
        self.counts["runs"] += 1
        self.counts["rows"] += summary["asked"]
        total = summary["kept"] + sum(summary["rejected"].values()) + summary["skipped"] + summary["failed"]
        if total != summary["asked"]:
            raise Broken(f"counts do not add up: {summary}")
        manifest = self._manifest(out)
        stored: Counter[str] = Counter()
        for shard in manifest.shards:
            self._check(out, shard)
            stored[shard.kind] += shard.rows
        counted = {**summary, "rejected": sum(summary["rejected"].values())}
        for kind in ("kept", "rejected", "failed", "skipped"):
            if stored[kind] != counted[kind]:
                raise Broken(f"{kind}: {stored[kind]} rows in shards, {counted[kind]} in the summary")
        self._verify(out)


def drawn(fuzz: Fuzz, seed: int, end: float) -> None:
    """Draw cases at random until the time is over."""
    chance = random.Random(seed)
    while time.monotonic() < end:
        fuzz.one(drawn_case(chance))


def grown(fuzz: Fuzz, seed: int, end: float, finish: Callable[[], None]) -> None:
    """Let libFuzzer grow cases by coverage until the time is over; it never returns, so `finish` is called inside."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def one(data: bytes) -> None:
        fuzz.one(data)
        if time.monotonic() >= end:
            finish()

    chance, corpus = random.Random(seed), fuzz.folder.parent / "corpus"
    corpus.mkdir()
    for number in range(SEEDS):
        (corpus / str(number)).write_bytes(drawn_case(chance))
    options = [f"-seed={seed}", "-max_len=4096", "-len_control=0", "-verbosity=0", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz for so many minutes and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    args = parser.parse_args()
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=base))
    if args.atheris:
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

        with atheris.instrument_imports(include=["engine"]):
            fuzz = Fuzz(folder / "case", args.findings)
    else:
        fuzz = Fuzz(folder / "case", args.findings)
    start = time.monotonic()

    def finish() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        fuzz.counts["seconds"] = round(time.monotonic() - start)
        print(json.dumps(dict(fuzz.counts)), flush=True)
        os._exit(1 if fuzz.counts["findings"] else 0)

    if args.replay:
        fuzz.one(args.replay.read_bytes())
    elif args.atheris:
        grown(fuzz, args.seed, start + 60 * args.minutes, finish)
    else:
        drawn(fuzz, args.seed, start + 60 * args.minutes)
    finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())

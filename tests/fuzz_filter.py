"""Fuzz `potstill filter`: whatever the bytes, it ends in a good run or in one sentence, and its counts add up.

    python tests/fuzz_filter.py --minutes 10 [--seed 1] [--atheris] [--replay FILE]

A case is bytes: the first few choose format and settings, the rest is taken as lines, or seeds rows that are written
as JSON and then damaged. With `--atheris` (pip install atheris) libFuzzer grows cases by coverage of the engine, else
they are drawn at random. A finding is saved as a file and shown; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CONTROL_BYTES = 8
SEEDS = 200
"""Cases that libFuzzer begins with; from none it would take minutes to get to a row."""
FORMATS = ("jsonl", "jsonl", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "cut.gz", "cut.zst", "mislabelled")
WORDS = (
    *("I cannot", "i don\u2019t know", "", " ", "\u00a0", "fine words", "x" * 900, "\ud800", "\x00", "\u2028", "\\"),
    *("[redacted]", "{", '"', "e\u0301", "\uff29 cannot", "😀" * 50, "Say it", '{"a": 1}', "```json\n[1]\n```"),
)
KEYS = (
    *("instruction", "output", "input", "template", "finish_reason", "id", "rule", "reason", "aborted", "messages"),
    *("row_number", "x"),
)
DAMAGE = (b"", b"\xff", b"{", b"[" * 2000, b'"', b"\n", b"\\u", b"\xed\xa0\x80", b",,", b"\\ud83d")
RULES: tuple[list[dict[str, Any]], ...] = (
    [],
    [{"use": "blank"}, {"use": "truncated", "sentence": True}, {"use": "echo", "min_words": 1}, {"use": "repetition"}],
    [{"use": "format", "json": True}],
    [{"use": "near_duplicate"}, {"use": "format", "regex": ".*"}],
)


class Broken(Exception):  # noqa: N818
    """A promise that the filter did not keep."""


def value(chance: random.Random, depth: int = 0) -> Any:
    """Return a JSON value of a kind that a row may hold by mistake."""
    kind = chance.randrange(14)
    if kind < 8 or depth > 3:
        return "".join(chance.choices(WORDS, k=chance.randrange(4)))
    if kind == 8:
        return [value(chance, depth + 1) for _ in range(chance.randrange(3))]
    if kind == 9:
        return {chance.choice(KEYS): value(chance, depth + 1) for _ in range(chance.randrange(3))}
    if kind == 10:
        roles = ("system", "user", "assistant", "tool", 3)
        return [{"role": chance.choice(roles), "content": value(chance, depth + 1)} for _ in range(chance.randrange(4))]
    return chance.choice((None, True, 0, -1, 2**70, 1e400, float("nan"), 0.5))


def row(chance: random.Random) -> dict[str, Any]:
    """Return a row that is mostly one."""
    found = {"instruction": "".join(chance.choices(WORDS, k=2)), "output": " ".join(chance.choices(WORDS, k=3))}
    for _ in range(chance.randrange(4)):
        found[chance.choice(KEYS)] = value(chance)
    if chance.random() < 0.1:
        found.pop(chance.choice(list(found)))
    return found


def lines(body: bytes, kind: int) -> bytes:
    """Return the bytes of a case as a file: as they are, or as rows that they seed, damaged or not."""
    if kind == 0:
        return body
    chance = random.Random(body)
    texts = [
        json.dumps(row(chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        for _ in range(chance.randrange(40))
    ]
    texts += chance.choices(texts, k=len(texts) // 3) if texts else []
    found = bytearray(chance.choice((b"\n", b"\n", b"\r\n", b"\n\n", b"\n\x00")).join(texts))
    for _ in range(chance.randrange(4) if kind == 1 and found else 0):
        place = chance.randrange(len(found))
        cut = place + chance.randrange(1, 9)
        found[place:cut] = chance.choice(DAMAGE)
    return bytes(found)


def write_source(folder: Path, form: str, data: bytes, chance: random.Random) -> Path:
    """Write a case's file in its format."""
    path = folder / f"rows.{form.removeprefix('cut.') if form.startswith('cut') else form}"
    if form in ("parquet", "arrow"):
        return write_table(path, data)
    if form.endswith("gz"):
        data = gzip.compress(data, 1)
    elif form.endswith("zst"):
        import zstandard

        data = zstandard.ZstdCompressor(1).compress(data)
    if form.startswith("cut"):
        data = data[: chance.randrange(len(data) + 1)]
    if form == "mislabelled":
        path = folder / f"rows.{chance.choice(('parquet', 'arrow', 'jsonl.gz', 'jsonl.zst'))}"
    path.write_bytes(data)
    return path


def write_table(path: Path, data: bytes) -> Path:
    """Write what of the lines is a row as a table, with the columns as they come or as texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            one = json.loads(line)
            rows.append(one if isinstance(one, dict) else {"instruction": one})
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        names = sorted({name for one in rows for name in one})
        texts = {name: [ascii(one[name]) if name in one else None for one in rows] for name in names}
        table = pa.table({name.encode("utf-8", "replace").decode(): column for name, column in texts.items()})
    try:
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    except pa.ArrowException:  # a struct without fields is no Parquet
        path.write_bytes(data)
    return path


def settings_of(control: bytes, chance: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and the other arguments of a case."""
    rules = RULES[control[1] % len(RULES)]
    section = {
        "phrase_match": ("substring", "robust")[control[2] % 2],
        "dedup_ignore": chance.choice(([], ["case"], ["case", "space", "form"])),
        "dedup_on": chance.choice((["instruction", "output"], ["output"], ["instruction", "input", "output"])),
        "cap_key": ("prefix", "template")[control[3] % 2],
        "cap_per_template": chance.choice((0, 1, 250)),
        "cap_share": chance.choice((0.0, 0.5)),
        "min_chars": chance.choice((0, 5)),
        "rules": rules,
    }
    arguments = {
        "strict": control[4] % 16 == 0,
        "zstd": control[4] % 3 == 0,
        "messages": "messages" if control[5] % 4 == 0 else "",
        "output": chance.choice(("output", "output", "x")),
    }
    return {"filter": section, "output": {"shard_bytes": chance.choice((1024, 1 << 20))}}, arguments


class Fuzz:
    """Runs cases in one folder and counts what became of them."""

    def __init__(self, folder: Path, found: Path) -> None:
        from engine.columns import Columns
        from engine.config import from_mapping
        from engine.errors import PotstillError
        from engine.filter_run import filter_rows
        from engine.shards import check_shard, read_manifest
        from engine.verify import verify

        self.folder, self.found = folder, found
        self.counts: Counter[str] = Counter()
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
        out = self.folder / "out"
        settings = self._from_mapping(config, where="fuzz")
        try:
            summary = self._filter([str(source)], out, settings, columns=columns, **arguments)
        except self._sentence as error:
            self.counts["sentences"] += 1
            if "\n" in str(error).strip() or len(str(error)) < 20:
                raise Broken(f"not one sentence: {error}") from error
            return
        self._look(out, summary)

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


def drawn_case(chance: random.Random) -> bytes:
    """Return the bytes of a case."""
    return chance.randbytes(CONTROL_BYTES + int(chance.expovariate(0.005)))


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

"""Cases for the fuzz of the filter. A case is bytes: the first few choose format and settings, the rest is taken as
lines, or seeds rows that are written as JSON and then damaged.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from pathlib import Path
from typing import Any

CONTROL_BYTES = 8
LARGE, LARGE_ROWS = 0.02, 3000
"""Share of the cases that are larger than one batch, and their rows."""
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
    if chance.random() < LARGE:
        texts = chance.choices(texts, k=LARGE_ROWS) if texts else []
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
    plain = control[7] % 2  # what the compiled code knows
    section = {
        "phrase_match": "substring" if plain else ("substring", "robust")[control[2] % 2],
        "dedup_ignore": [] if plain else chance.choice(([], ["case"], ["case", "space", "form"])),
        "dedup_on": chance.choice((["instruction", "output"], ["output"], ["instruction", "input", "output"])),
        "cap_key": ("prefix", "template")[control[3] % 2],
        "cap_per_template": chance.choice((0, 1, 250)),
        "cap_share": 0.0 if plain else chance.choice((0.0, 0.5)),
        "min_chars": chance.choice((0, 5)),
        "rules": [] if plain else rules,
    }
    arguments = {
        "strict": control[4] % 16 == 0,
        "zstd": control[4] % 3 == 0,
        "messages": "messages" if control[5] % 4 == 0 and not plain else "",
        "workers": (0, 0, 2)[control[5] % 3],
        "output": chance.choice(("output", "output", "x")),
    }
    return {"filter": section, "output": {"shard_bytes": chance.choice((1024, 1 << 20))}}, arguments


def drawn_case(chance: random.Random) -> bytes:
    """Return the bytes of a case."""
    return chance.randbytes(CONTROL_BYTES + int(chance.expovariate(0.005)))

"""Rows, and what `potstill filter` made of them, for the tests of a run of the filter."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

from bench.naive import naive_passes
from engine.config import RECIPE_PHRASES, Config, Output
from engine.shards import check_shard, read_lines, read_manifest

SMALL = Config(output=Output(shard_bytes=20_000))


def rows_of(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Make rows with duplicates, odd lengths, phrases and full templates."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        if rows and chance.random() < 0.2:
            rows.append(chance.choice(rows) | {"id": number})
            continue
        output = chance.choice(["", "ok", "I cannot do that", "x" * 900, "fine words " * 5]) + str(number)
        instruction = f"Do this with {chance.randint(0, 9)} of {number}"
        rows.append({"instruction": instruction, "output": output, "id": number})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines_of(folder: Path, kind: str) -> list[bytes]:
    """Read the published lines of one kind, in order, after checking the shards."""
    lines: list[bytes] = []
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        check_shard(folder, shard)
        if shard.kind == kind:
            lines += read_lines(folder, shard)
    return lines


def expected_ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in naive_passes(rows, RECIPE_PHRASES)["cap"]]


def parts(folder: Path) -> set[tuple[str, int]]:
    """Return the unpublished files, told apart from those of an earlier process."""
    found = set()
    for path in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def assert_same(whole: Path, other: Path) -> None:
    """Check that two output folders hold the same rows, whatever their shards."""
    for kind in ("kept", "rejected", "failed"):
        assert lines_of(whole, kind) == lines_of(other, kind)
    own = {"seconds": 0, "run": "", "robust_would_drop": {}}
    counts = [{**read_manifest(folder).summary, **own} for folder in (whole, other)]
    assert counts[0] == counts[1]
    assert not list(other.glob("*.part"))

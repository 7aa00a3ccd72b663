"""Runs on the echo backend, for the tests of generation: settings, commands, and what is on disk."""

import sys
from contextlib import suppress
from pathlib import Path

from engine import config
from engine.shards import read_lines, read_manifest

ROOT = Path(__file__).resolve().parent.parent
ECHO = ROOT / "data" / "echo.toml"
FAST = [
    "teacher.echo.tokens_per_s=1e9",
    "prompts.count=3000",
    "filter.cap_per_template=700",
    "output.shard_bytes=65536",
]


def settings(*overrides: str) -> config.Config:
    return config.load(ECHO, [*FAST, *overrides])


def lines(folder: Path, kind: str = "kept") -> list[bytes]:
    manifest = read_manifest(folder)
    return [line for shard in manifest.of(kind) for line in read_lines(folder, shard)]  # type: ignore[arg-type]


def command(folder: Path, *overrides: str) -> list[str]:
    sets = [part for override in [*FAST, *overrides] for part in ("--set", override)]
    return [sys.executable, "-m", "potstill", "generate", str(ECHO), "--out", str(folder), *sets]


def size(folder: Path) -> int:
    """Bytes of rows in a run folder, published or not; a file may be renamed while they are counted."""
    found = 0
    for path in folder.glob("*.jsonl*"):
        with suppress(FileNotFoundError):
            found += path.stat().st_size if path.name != "metrics.jsonl" else 0
    return found

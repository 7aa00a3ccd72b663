"""Runs to export, and bundles to read: real files, rows that are hard to carry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from engine.export import Request, export
from engine.rows import Row, hash_id
from engine.shards import Manifest, ShardWriter, read_manifest, write_manifest

STUDENT = "student.model=Qwen/Qwen2.5-0.5B-Instruct"
ALL = ("alpaca", "axolotl", "hf", "jsonl", "llamafactory", "openai", "parquet", "sharegpt", "torchtune", "trl")
HOSTILE = (
    "plain",
    'quotes " and \\ and \\" and \'',
    "lines\nfeeds\r\nand\rreturns\ttabs",
    "line separators \u2028 \u2029 \x85 \x0b \x0c",
    "controls \x00 \x01 \x1f \x7f",
    "emoji \U0001f600, combining e\u0301, right to left \u202e\u05d0, wide \uff11",
    "---\nyaml: front\n---",
    "<|im_end|>\n<|im_start|>assistant\n</s>[/INST]",
    "{{ jinja }} {% raw %} {instruction}",
    "</script><img src=x onerror=alert(1)> | `code` | ```fence```",
    "\ufeffbyte order mark, \ufffd, \uffff",
    '{"instruction": "json in json"}',
    "  spaces around  ",
    "null",
)
FINGERPRINT = {
    "teacher.model": "/home/somebody/models/teacher-4b",
    "teacher.adapter": "",
    "sampling.temperature": 0.7,
    "filter.max_chars": 800,
    "filter.phrases": ["i cannot", "`<script>alert(1)</script>`\n# no title", "| a cell |", "/think"],
    "filter.phrase_files": ["/home/somebody/lists/refusals.txt"],
    "filter.phrase_files[/home/somebody/lists/refusals.txt]": "a hash",
}


def make_rows(count: int, *, finish_reason: str = "stop", first: int = 0) -> list[Row]:
    """Return rows of hostile text; every question is asked twice, the second time in other letters and spaces."""
    rows = []
    for index in range(first, first + count):
        hard = HOSTILE[index // 2 % len(HOSTILE)]
        question = f"Say this back, number {index // 2}."
        row = Row(
            instruction=question if index % 2 else f"  {question.upper().replace(' ', '  ')}",
            input=hard if index % 4 < 2 else "",
            output=f"{hard} ({index})",
            template=f"t{index % 3}",
            id=hash_id(str(index)),
            index=index,
            finish_reason=finish_reason,
            prompt_tokens=index % 50,
            output_tokens=7,
            seed=2**61 + index,
        )
        rows.append(row)
    return rows


def write_run(folder: Path, rows: Sequence[Row], *, shard_rows: int = 40, **manifest: Any) -> Path:
    """Write a finished run of kept rows in several shards."""
    told = {"fingerprint": FINGERPRINT, "teacher": {"backend": "vllm", "endpoint": "http://inside:8000"}, **manifest}
    writer = ShardWriter(folder, Manifest(**told), shard_bytes=1024)
    for start in range(0, len(rows), shard_rows):
        writer.append("kept", [msgspec.json.encode(row) + b"\n" for row in rows[start : start + shard_rows]])
        writer.publish()
    writer.close()
    done = read_manifest(folder)
    done.finished = True
    done.summary = {
        "asked": len(rows) + 9,
        "kept": len(rows),
        "rejected": {"duplicate": 4, "length": 3, "phrase": 0, "cap": 1},
        "skipped": 1,
        "failed": 0,
    }
    write_manifest(folder, done)
    return folder


def export_run(run: Path, *to: str, **request: Any) -> tuple[Path, dict[str, Any]]:
    """Export a run; return the bundle's folder and the summary."""
    request.setdefault("overrides", [STUDENT])
    summary = export(run, Request(to=to, **request))
    return Path(summary["export"]), summary


def read_jsonl(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read JSON lines the strict way: split at newline bytes only."""
    return [json.loads(line) for path in paths for line in path.read_bytes().decode().split("\n")[:-1]]


def read_both(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read train.jsonl and validation.jsonl of a folder."""
    return read_jsonl([folder / "train.jsonl"]), read_jsonl([folder / "validation.jsonl"])


def front_matter(bundle: Path) -> tuple[dict[str, Any], str]:
    """Return what a card tells machines, and what it tells people."""
    head, body = (bundle / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


ROWS = make_rows(400)


def whole_bundle(folder: Path) -> tuple[Path, Path]:
    """Write a run of ROWS, and a bundle with every JSONL format and every configuration; return both folders."""
    run = write_run(folder / "run", ROWS)
    every = [name for name in ALL if name not in ("hf", "parquet")]
    return run, export_run(run, *every, out=folder / "bundle", name="demo", val_fraction=0.2)[0]

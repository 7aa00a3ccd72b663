"""`potstill replay`: ask the teacher one row of a run again, with the run's settings and the row's seed, and compare.

Promises that nothing in the run folder changes, and that what is asked is what was asked: a changed setting, template
or prompt file is refused by name. Whether the answers must be equal is for docs/sampling.md to say.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from engine.backend import answer_all, make_backend
from engine.command import path_of, set_argument
from engine.config import Config, load
from engine.errors import DataError, MissingError, UsageError
from engine.prompts import source_of
from engine.rows import OUTCOMES, Completion, Outcome, Prompt, Row
from engine.run_settings import SPEED_FACTS, check_settings
from engine.shards import Manifest, published_rows, read_manifest
from engine.steer import EMPTY

BEFORE, AFTER = 20, 40
"""Characters shown on either side of the first difference."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill replay`."""
    parser.add_argument("run", type=path_of, metavar="RUN", help="run folder of generate")
    parser.add_argument("row", metavar="ROW", help="a row's id or index")
    set_argument(parser)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Ask a row again and say whether the answer is the same."""
    return replay(args.run, args.row, args.overrides)


def replay(folder: Path, wanted: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Ask one row of a run again and compare.

    Raises: UsageError where the row was never asked or a setting differs, MissingError where there is no such row.
    """
    manifest = read_manifest(folder)
    if "sources" in manifest.fingerprint:
        raise UsageError(f"{folder} was written by filter; give the run of generate that its rows come from")
    outcome, row = _find(folder, manifest, wanted)
    if outcome == "skipped":
        raise UsageError(f"row {row.id} was never asked: skipped by the rule {row.rule} ({row.reason})")
    if outcome == "failed" and row.reason == EMPTY:
        raise UsageError(f"row {row.id} was never asked: {row.reason}")
    settings = load(folder / "config.toml", overrides)
    source = source_of(settings)
    do = "leave out --set" if overrides else "replay another run"
    check_settings(folder, manifest, settings, source, do=do)
    prompt = next(source.prompts(row.index), None)
    if prompt is None or prompt.id != row.id:
        raise DataError(f"{folder}: prompt {row.index} is not that of row {row.id}; another version made the run")
    answer, facts = asyncio.run(_ask(settings, prompt))
    found = compare(outcome, row, answer)
    then = manifest.teacher_of(row.index)
    changed = {key: [then.get(key), facts.get(key)] for key in sorted(then.keys() | facts.keys())}
    found["changed"] = {key: pair for key, pair in changed.items() if pair[0] != pair[1] and key not in SPEED_FACTS}
    return {"run": str(folder), **found}


def compare(outcome: Outcome, row: Row, answer: Completion) -> dict[str, Any]:
    """Return what `replay` prints of a stored row and a new answer; of a row that was ended early, what there is."""
    text = answer.text[: len(row.output)] if row.aborted else answer.text
    same = text == row.output and bool(answer.error) == (outcome == "failed")
    if not row.aborted:
        same = same and (answer.finish_reason, answer.votes) == (row.finish_reason, row.votes)
    return {
        "id": row.id,
        "index": row.index,
        "outcome": outcome,
        "equal": same,
        "aborted": row.aborted,
        "seed": row.seed,
        "stored": {"output": row.output, "finish_reason": row.finish_reason, "votes": row.votes},
        "answer": {
            "output": answer.text,
            "finish_reason": answer.finish_reason,
            "votes": answer.votes,
            "error": answer.error,
        },
        "first_difference": _difference(row.output, text),
    }


def _difference(stored: str, answer: str) -> dict[str, Any] | None:
    for place, (one, other) in enumerate(zip_longest(stored, answer)):
        if one != other:
            part = slice(max(0, place - BEFORE), place + AFTER)
            return {"character": place, "stored": stored[part], "answer": answer[part]}
    return None


def _find(folder: Path, manifest: Manifest, wanted: str) -> tuple[Outcome, Row]:
    for kind in OUTCOMES:
        for shard in manifest.of(kind):
            for _, row in published_rows(folder, shard, msgspec.json.Decoder(Row).decode):
                if wanted in (row.id, str(row.index)):
                    return kind, row
    more = "; it has not ended, and rows that are not published yet come with its next part" if manifest.is_open else ""
    raise MissingError(f"{folder} has no row {wanted}; give an id or an index from its shards{more}")


async def _ask(settings: Config, prompt: Prompt) -> tuple[Completion, dict[str, str]]:
    """Ask one teacher, without early decisions."""
    teacher = msgspec.structs.replace(settings.teacher, replicas=1, mps=False)
    async with make_backend(teacher, settings.sampling) as backend:
        (answer,) = await answer_all(backend, [prompt])
        return answer, backend.describe()

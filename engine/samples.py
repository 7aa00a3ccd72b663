"""Samples: the kept rows of a run as they leave it, one at a time.

Reads what `generate` wrote and what `filter` kept, whatever the filter's user calls the columns. Promises that every
kept row is a sample or is refused under a reason and counted. Holds one row at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.bundle import Sample
from engine.columns import Columns
from engine.errors import UsageError
from engine.rows import hash_id, user_turn
from engine.shards import Manifest, published_rows
from engine.split import group_of

TRUNCATED = "truncated"
"""Why a row is refused whose answer the token limit cut off: it would teach the student to stop anywhere."""


class Samples:
    """The samples of a run. `refused` is complete once all have been read."""

    def __init__(self, run: Path, manifest: Manifest, *, include_truncated: bool) -> None:
        self.refused = {TRUNCATED: 0}
        self._run = run
        self._manifest = manifest
        self._include_truncated = include_truncated
        self._decoder = msgspec.json.Decoder(_row_type(run, manifest))

    def __iter__(self) -> Iterator[Sample]:
        """Read them.

        Raises: DataError where a shard is not the one that was published, or a line is not a row.
        """
        for row in self._rows():
            if row.finish_reason == "length" and not self._include_truncated:
                self.refused[TRUNCATED] += 1
            else:
                yield _sample(row)

    def _rows(self) -> Iterator[Any]:
        for shard in self._manifest.of("kept"):
            for _, row in published_rows(self._run, shard, self._decoder.decode):
                yield row


def _row_type(run: Path, manifest: Manifest) -> type[msgspec.Struct]:
    """Return the struct of a kept line under the column names of its run."""
    names = {
        key.removeprefix("columns."): value for key, value in manifest.fingerprint.items() if key.startswith("columns.")
    }
    columns = msgspec.convert(names, Columns)
    if columns.messages:
        raise UsageError(
            f"{run} holds chats (filter --messages {columns.messages}), which have no one question to export; "
            "filter rows with an instruction and an output"
        )
    texts = [(name, str, msgspec.field(name=getattr(columns, name))) for name in ("instruction", "output")]
    optional = [
        (name, str | None, msgspec.field(name=getattr(columns, name, name), default=""))
        for name in ("input", "template", "id", "finish_reason")
    ]
    counts = [(name, int | None, msgspec.field(default=0)) for name in ("prompt_tokens", "output_tokens")]
    return msgspec.defstruct("KeptRow", [*texts, *optional, *counts], gc=False)


def _sample(row: Any) -> Sample:
    """Turn a row into a sample; a row without an id gets one from what it says."""
    instruction, input_text, output = row.instruction, row.input or "", row.output
    return Sample(
        id=row.id or hash_id(instruction, input_text, output),
        group=group_of(user_turn(instruction, input_text)),
        template=row.template or "",
        instruction=instruction,
        input=input_text,
        output=output,
        finish_reason=row.finish_reason or "",
        prompt_tokens=row.prompt_tokens or 0,
        output_tokens=row.output_tokens or 0,
    )

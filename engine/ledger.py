"""Ledger: what is decided goes to the disk in prompt order, and the answers that wait for an earlier prompt beside it.

Promises that every committed prompt is counted once and written once, in batches and off the event loop, and that the
gate sees the first rows. Knows a run's files and counts; nothing of teachers or of what is asked next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from engine.answered import Answer
from engine.errors import PotstillError
from engine.gate import Gate
from engine.goal import Goal
from engine.logprobs import record
from engine.progress import Progress, note
from engine.rows import Completion, Outcome, Prompt, row_of
from engine.run import Run
from engine.steer import Committed

WRITE_BYTES = 8 * 2**20
"""Rows that are decided at once are written in pieces of this size."""


class Ledger:
    """Writes one part of a run."""

    def __init__(self, run: Run, progress: Progress, *, gate: Gate | None, goal: Goal, count: int | None) -> None:
        """Write to this run; `goal` and the `count` of prompts are for the gate's forecast."""
        self._run = run
        self._progress = progress
        self._gate = gate
        self._goal = goal
        self._count = count
        self._objection: str | None = None
        self._encoder = msgspec.json.Encoder()
        self._before_s = progress.answering_s
        """Seconds in which the answers of earlier parts of the run came."""
        self._fresh: dict[str, Answer] = {}
        """Answers that came since the last call of `commit`."""

    def answered(self, prompt: Prompt, completion: Completion) -> None:
        """Take note of an answer, which is kept if it has to wait; a failed prompt is asked again after a kill."""
        if not completion.error:
            self._fresh[prompt.id] = Answer(prompt.index, completion)

    async def commit(self, decided: Iterable[Committed]) -> None:
        """Write what is decided, in prompt order, and publish shards that are full.

        Raises: PotstillError where the gate stops the run, when what it saw is published.
        """
        lines: dict[Outcome, list[bytes]] = {}
        records: list[bytes] = []
        size = 0
        for committed in decided:
            self._fresh.pop(committed.prompt.id, None)
            lines.setdefault(committed.outcome, []).append(self._line(committed))
            size += len(lines[committed.outcome][-1])
            if committed.outcome == "kept" and committed.completion.logprobs:
                records.append(record(committed.prompt.id, committed.completion.logprobs))
                size += len(records[-1])
            if size >= WRITE_BYTES:
                await asyncio.to_thread(self._write, lines, records)
                lines, records, size = {}, [], 0
        if lines or self._fresh:
            fresh, self._fresh = list(self._fresh.values()), {}
            await asyncio.to_thread(self._write, lines, records, fresh)
        if self._objection is not None:
            await asyncio.to_thread(self._run.writer.publish)
            raise PotstillError(self._objection)

    def _line(self, committed: Committed) -> bytes:
        """Count a prompt, show it to the gate, and return its line."""
        row = row_of(committed.prompt, committed.completion, committed.verdict, held=committed.waited)
        self._run.tally.add(committed.outcome, row)
        self._run.answered.committed(row.id)
        line = self._encoder.encode(row) + b"\n"
        size = len(line) + (len(committed.completion.logprobs) if committed.outcome == "kept" else 0)
        if self._gate is not None and self._gate.add(committed.outcome, row, size, committed.prompt):
            self._look(self._gate)
            self._gate = None
        return line

    def _look(self, gate: Gate) -> None:
        """Say what the gate has seen, and take down its objection."""
        total = self._goal.prompts(gate.rows, gate.kept.total(), gate.kept, candidates=gate.rows, count=self._count)
        seconds = self._progress.answering_s - (self._before_s if self._progress.answers else 0.0)
        form = self._run.manifest.teacher.get("prompt_form", "")
        note(gate.report(total=total, seconds=seconds, answered=self._progress.answers, form=form))
        self._objection = gate.objection()

    def _write(self, lines: dict[Outcome, list[bytes]], records: list[bytes], fresh: Sequence[Answer] = ()) -> None:
        self._run.writer.append_logprobs(records)
        for outcome, rows in lines.items():
            self._run.writer.append(outcome, rows)
        self._run.answered.append(fresh)
        if self._run.writer.due:
            self._run.writer.publish()

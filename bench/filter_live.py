"""What judging costs a run that generates: rows one by one through the real Filter, inside an event loop.

The loop does what the run does with a finished row: judge, make the line, append the lines of a few rows at once.
Between them it yields, as a run does; what that costs is measured without rows and left out.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine import config as configuration
from engine.filter import Filter
from engine.rows import Completion, Prompt, row_of
from engine.shards import Manifest, ShardWriter

ROWS_A_TURN = 32
"""Rows that are committed between two turns of the event loop."""
Made = tuple[Prompt, Completion]


class _Line(msgspec.Struct):
    id: str
    instruction: str
    output: str
    template: str


def measure_live(source: Path, *, rounds: int) -> dict[str, float]:
    """Return CPU microseconds a row inside the event loop: of the verdict alone, and with the line and its writing."""
    lines = [msgspec.json.decode(line, type=_Line) for line in source.read_bytes().splitlines()]
    made = [
        (
            Prompt(index=number, id=line.id, template=line.template, instruction=line.instruction),
            Completion(id=line.id, text=line.output, finish_reason="stop"),
        )
        for number, line in enumerate(lines)
    ]
    costs: dict[str, float] = {}
    for _ in range(rounds):
        idle = asyncio.run(_turns(len(made) // ROWS_A_TURN))
        for name, write in (("verdict", False), ("verdict, line and write", True)):
            with tempfile.TemporaryDirectory(dir=source.parent) as folder:
                spent = (asyncio.run(_live(made, Path(folder), write=write)) - idle) * 1e6 / len(made)
            costs[name] = round(min(costs.get(name, spent), spent), 2)
    return costs


async def _turns(count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        await asyncio.sleep(0)
    return time.process_time() - start


async def _live(made: Sequence[Made], folder: Path, *, write: bool) -> float:
    settings = configuration.Config()
    rules = Filter(settings.filter)
    writer = ShardWriter(folder, Manifest(), shard_bytes=settings.output.shard_bytes)
    start = time.process_time()
    for first in range(0, len(made), ROWS_A_TURN):
        kept, rejected = list[bytes](), list[bytes]()
        for prompt, completion in made[first : first + ROWS_A_TURN]:
            verdict = rules.judge(prompt.instruction, prompt.input, completion.text, prompt.template)
            if write:
                line = msgspec.json.encode(row_of(prompt, completion, verdict)) + b"\n"
                (kept if verdict.kept else rejected).append(line)
        writer.append("kept", kept)
        writer.append("rejected", rejected)
        if writer.due:
            writer.publish()
        await asyncio.sleep(0)
    if write:
        writer.publish()
    writer.close()
    return time.process_time() - start

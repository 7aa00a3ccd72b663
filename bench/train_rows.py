"""The rows that `bench train` trains on: a run's, a file's, or the three tasks of the recipe with reference answers.

Promises that every contender reads the same rows, none longer than the shortest limit among them, and that the
held-out rows ask nothing that a training row asks. Needs no teacher.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Prompts
from engine.errors import DataError, PotstillError
from engine.lines import decode_line, numbered_lines
from engine.prompts import open_source
from engine.rows import Row
from engine.run_rows import is_run
from engine.shards import Manifest, ShardWriter, read_lines, read_manifest
from engine.split import group_of, held_out
from trainer.examples import example_of
from trainer.render import Chat, Rendered, render

TEMPLATES = Path(__file__).parent.parent / "data" / "templates" / "three-tasks.toml"
MAX_LENGTH = 2048
"""The recipe's limit; it would cut longer rows, Potstill would drop them, so none is handed to either."""

TEMPLATE_KWARGS = {"enable_thinking": False}
"""What chat templates are called with. Of a model that can think, the recipe's `text` has an empty thought before the
answer; so has Potstill's prompt with this. Other templates do not look at it."""


class Rows(msgspec.Struct, frozen=True):
    """What is trained on and what is held out, with the tokens of the training rows."""

    train: list[Row]
    held_out: list[Row]
    over_length: int
    tokens: int
    trained_tokens: int
    longest: int


def load_rows(data: Path | None, count: int, held_out_count: int, chat: Chat, *, seed: int) -> Rows:
    """Read or make about `count` rows to train on and `held_out_count` to measure on, split by what they ask.

    Raises: DataError or MissingError where `data` cannot be read, PotstillError where a part is empty.
    """
    wanted = count + held_out_count
    rows = list(islice(_made(seed) if data is None else _read(data), wanted))
    rendered = list(render(chat, [example_of(row) for row in rows]))
    short = [(row, whole) for row, whole in zip(rows, rendered, strict=True) if whole.tokens <= MAX_LENGTH]
    sides: tuple[list[tuple[Row, Rendered]], list[tuple[Row, Rendered]]] = ([], [])
    for row, whole in short:
        sides[held_out(whole.group, val_fraction=held_out_count / wanted, seed=seed)].append((row, whole))
    if not sides[0] or not sides[1]:
        raise PotstillError(
            f"bench train: of {len(rows)} rows none is left to train on or to hold out; raise --rows or --held-out"
        )
    return Rows(
        train=[row for row, _ in sides[0]],
        held_out=[row for row, _ in sides[1]],
        over_length=len(rows) - len(short),
        tokens=sum(whole.tokens for _, whole in sides[0]),
        trained_tokens=sum(whole.trained_tokens for _, whole in sides[0]),
        longest=max(whole.tokens for _, whole in sides[0]),
    )


def write_run(folder: Path, rows: Sequence[Row]) -> None:
    """Write rows as the kept rows of a run."""
    writer = ShardWriter(folder, Manifest(), shard_bytes=16 * 2**20)
    writer.append("kept", [msgspec.json.encode(row) + b"\n" for row in rows])
    writer.publish()
    writer.close()


def read_run(folder: Path) -> Iterator[Row]:
    """Yield the kept rows of a run whose answers are whole."""
    decoder = msgspec.json.Decoder(Row)
    for shard in read_manifest(folder).of("kept"):
        for line in read_lines(folder, shard):
            row = decoder.decode(line)
            if row.finish_reason != "length":
                yield row


def _read(data: Path) -> Iterator[Row]:
    if is_run(data):
        yield from read_run(data)
        return
    for number, line in numbered_lines(data):
        record = decode_line(data, number, line)
        fields = {key: record.get(key, "") for key in ("instruction", "input", "output", "template")}
        if not fields["instruction"] or not fields["output"] or not all(isinstance(v, str) for v in fields.values()):
            raise DataError(f"{data}:{number}: needs a text under instruction and output; mend or remove the line")
        yield Row(**fields, id=str(number), index=number, finish_reason="stop")


def _made(seed: int) -> Iterator[Row]:
    """Yield rows of the three tasks, each question once, until the questions end."""
    source = open_source(Prompts(templates=str(TEMPLATES), count=10**9, seed=seed), run_seed=seed, greedy=True)
    for prompt in source.prompts():
        answer = ANSWERS[prompt.template](prompt.instruction)
        yield Row(
            instruction=prompt.instruction,
            input="",
            output=answer,
            template=prompt.template,
            id=group_of(prompt.instruction),
            index=prompt.index,
            finish_reason="stop",
        )


def _celsius(question: str) -> str:
    fahrenheit = Decimal(question.split()[-2])
    return f"{(fahrenheit - 32) * 5 / 9:.1f} C"


def _json(question: str) -> str:
    name, age = re.findall(r"name=(.*) age=(\d+)$", question)[0]
    fields: dict[str, Any] = {"name": name, "age": int(age)}
    return msgspec.json.encode(fields).decode().replace('":', '": ').replace(',"', ', "')


def _first_sentence(question: str) -> str:
    paragraph = question.partition("\n\n")[2]
    return re.split(r"(?<=[.!?]) ", paragraph, maxsplit=1)[0]


ANSWERS: dict[str, Callable[[str], str]] = {"temperature": _celsius, "json": _json, "summary": _first_sentence}
"""Template -> what stands in for a teacher: the same answer every time, and one that can be learnt."""

"""Examples: the kept rows of a run as conversations, without what cannot be learnt from, split into two parts.

Promises that every row is either an example or counted under the reason that dropped it, and that rows which ask the
same thing stand on the same side of the split whatever their order. Knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from engine.rows import Row, user_turn
from engine.shards import Manifest, published_rows
from engine.split import group_of, held_out
from engine.split import normalised as normalised


class Example(msgspec.Struct, frozen=True, gc=False):
    """One question and its answer. `group` is equal where the questions are, but for case and spaces."""

    id: str
    template: str
    group: str
    question: str
    answer: str

    def conversation(self, template_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the example as a conversational prompt/completion row, the shape that TRL and Unsloth both read."""
        return {
            "prompt": [{"role": "user", "content": self.question}],
            "completion": [{"role": "assistant", "content": self.answer}],
            "chat_template_kwargs": template_kwargs,
        }


class Grouped(Protocol):
    """What can be split: anything that knows its group."""

    @property
    def group(self) -> str: ...


G = TypeVar("G", bound=Grouped)


class Lesson(msgspec.Struct):
    """What is read of a row: of a run's, or of a gold file's, which has no more than question and answer."""

    instruction: str
    output: str
    input: str = ""
    template: str = ""
    id: str = ""
    finish_reason: str = "stop"


def read_examples(run: Path, manifest: Manifest) -> tuple[list[Example], dict[str, int]]:
    """Read the kept rows of a run; return the examples and how many rows were dropped, by reason.

    An answer that the token limit cut off (`finish_reason` is `length`) would teach the student to stop anywhere.
    Raises: DataError where a shard is not the one that was published, or a line is not a row.
    """
    examples, unfinished = [], 0
    for row in _rows(run, manifest):
        if row.finish_reason == "length":
            unfinished += 1
        else:
            examples.append(example_of(row))
    return examples, {"unfinished": unfinished}


def example_of(row: Row | Lesson) -> Example:
    """Turn a row into an example."""
    question = user_turn(row.instruction, row.input)
    return Example(row.id, row.template, group_of(question), question, row.output)


def split(examples: Sequence[G], *, val_fraction: float, seed: int) -> tuple[list[G], list[G]]:
    """Split into training and validation part by a hash of seed and group, so that neither order nor size matters."""
    train: list[G] = []
    validation: list[G] = []
    for example in examples:
        side = validation if held_out(example.group, val_fraction=val_fraction, seed=seed) else train
        side.append(example)
    return train, validation


def _rows(run: Path, manifest: Manifest) -> Iterator[Lesson]:
    decoder = msgspec.json.Decoder(Lesson)
    for shard in manifest.of("kept"):
        for number, (_, row) in enumerate(
            published_rows(run, shard, decoder.decode, do="it needs instruction and output"), start=1
        ):
            row.id = row.id or f"{shard.file}:{number}"
            yield row

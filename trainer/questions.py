"""Held-out questions of a run: what a student is asked to find out whether a copy of it answers the same.

Promises questions that the student was not trained on, the same ones each time. Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.config import Config
from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError
from engine.lines import numbered_lines
from engine.rows import Prompt, hash_id
from trainer.examples import read_examples, split
from trainer.roles import open_rows
from trainer.student import Student


class _Item(msgspec.Struct):
    """What is read of a held-out item; its reference and metric are evaluation's."""

    instruction: str
    input: str = ""


def held_out_prompts(student: Student, most: int) -> list[Prompt]:
    """Return up to `most` prompts: held-out items where the run names some, else rows kept back from training.

    Raises: MissingError where there is none, DataError with `path:line` where an item cannot be read.
    """
    config = student.config
    found = _items(Path(config.eval.items)) if config.eval.items else _kept_back(student.data, config)
    if not found:
        raise MissingError(
            f"{student.data} has no row that was kept back from training to compare answers on; "
            "name held-out items with --set eval.items=FILE, or add --no-verify"
        )
    chosen = [found[key] for key in sorted(found)[:most]]
    return [
        Prompt(index=number, id=f"held-out-{number}", template="", instruction=item.instruction, input=item.input)
        for number, item in enumerate(chosen)
    ]


def _items(path: Path) -> dict[str, _Item]:
    items = {}
    for number, line in numbered_lines(path):
        try:
            item = msgspec.json.decode(line, type=_Item)
        except UNREADABLE as error:
            raise DataError(f"{path}:{number}: not a held-out item ({error}); mend or remove the line") from None
        items[hash_id(item.instruction, item.input)] = item
    return items


def _kept_back(data: Path, config: Config) -> dict[str, _Item]:
    examples, _ = read_examples(*open_rows(data))
    _, kept_back = split(examples, val_fraction=config.train.val_fraction, seed=config.train.seed)
    return {hash_id(example.question, ""): _Item(example.question) for example in kept_back}

"""Whether a held-out item was in the training rows, or among the teacher's few-shot examples.

Two layers, both exact after normalising: the whole question, and only what stands in its slots. N-gram overlap is
not used: on short templated rows it finds nothing, even where every item was trained on. Constant memory in the
number of rows. Knows nothing of scores.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from engine.errors import MissingError
from engine.rows import Message, user_turn
from engine.shards import read_lines, read_manifest
from evals.items import Item


class Overlap(msgspec.Struct, frozen=True):
    """Ids of the items that are not new to somebody."""

    rows: int
    """Kept rows that were compared."""
    same: list[str]
    """The whole question is a training row's."""
    slots: list[str]
    """What is asked about is a training row's of the same template, in other words around it."""
    shown: list[str]
    """The question is one of the few-shot examples that the teacher sees with its answer."""

    @property
    def ids(self) -> set[str]:
        """Items that are not clean."""
        return {*self.same, *self.slots, *self.shown}


class _Question(msgspec.Struct, frozen=True):
    """What a kept row, or a few-shot example, asks."""

    instruction: str
    input: str = ""
    template: str = ""

    @property
    def text(self) -> str:
        return user_turn(self.instruction, self.input)


def find_overlap(items: Sequence[Item], run: Path, prefixes: Mapping[str, tuple[Message, ...]]) -> Overlap | None:
    """Compare items with a run's kept rows; None where the folder is no run, so that there is nothing to compare.

    Raises: DataError where a shard is not the one that was published.
    """
    try:
        kept = list(read_manifest(run).of("kept"))
    except MissingError:
        return None
    rows = sum(shard.rows for shard in kept)
    lines = (line for shard in kept for line in read_lines(run, shard))
    same, alike = _matches(items, _questions(lines))
    shown, _ = _matches(items, _examples(prefixes))
    return Overlap(rows, sorted(same), sorted(alike - same), sorted(shown))


def normal_question(text: str) -> str:
    """Return a question in the form in which two are the same: NFKC, case, minus signs, spaces."""
    folded = unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
    return " ".join(folded.split())


def slot_text(text: str) -> str:
    """Return only what a question is about: the part after the first blank line, as words and plain numbers.

    `72.0`, `72` and `+72` are the same, and so are `name=zip, size=616` and `name: zip  size: 616`. A question
    without a blank line is about all of itself.
    """
    _, _, body = text.partition("\n\n")
    words = re.findall(r"-?\d+(?:\.\d+)?|[^\W\d_]+", normal_question(body or text))
    return " ".join(_plain_number(word) for word in words)


def _plain_number(word: str) -> str:
    return word.rstrip("0").rstrip(".") if "." in word else word


def _matches(items: Sequence[Item], questions: Iterable[_Question]) -> tuple[set[str], set[str]]:
    whole: dict[str, list[str]] = {}
    about: dict[tuple[str, str], list[str]] = {}
    for item in items:
        whole.setdefault(normal_question(item.question), []).append(item.id)
        slots = slot_text(item.question)
        if slots:
            about.setdefault((item.template, slots), []).append(item.id)
    same: set[str] = set()
    alike: set[str] = set()
    for question in questions:
        same.update(whole.get(normal_question(question.text), ()))
        alike.update(about.get((question.template, slot_text(question.text)), ()))
    return same, alike


def _questions(lines: Iterable[bytes]) -> Iterator[_Question]:
    for line in lines:
        yield msgspec.json.decode(line, type=_Question)


def _examples(prefixes: Mapping[str, tuple[Message, ...]]) -> Iterator[_Question]:
    for template, turns in prefixes.items():
        for turn in turns:
            if turn.role == "user":
                yield _Question(turn.content, template=template)

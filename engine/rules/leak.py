"""Leak guard: no row of training data may ask what a held-out item asks.

Three looks at the question (instruction and input): the same words; the same words when numbers, quoted texts and
names are slots; a long run of words in common. It reads the prompt alone, so it can decide early, before a teacher is
asked (`refuse`); `feed` sees only the output and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine import rule_settings as settings
from engine.decode import UNREADABLE
from engine.errors import ConfigError, DataError, MissingError
from engine.lines import digest_of
from engine.rules import Draft
from engine.rules.text import words_of

_SLOT = re.compile(r"\"[^\"]*\"|\u201c[^\u201d]*\u201d|\d+(?:[.,:]\d+)*|(?<=[^.!?\s] )[A-Z\u00c0-\u00de]\w*")
"""Numbers, quoted texts, and capitalised words but at the beginning of a sentence."""
_QUESTION_KEYS = ("instruction", "prompt", "question")
SLOT_WORDS = 3
"""A question of fewer words that are not slots says too little to be told by them."""


class LeakRule:
    """Rejects a row whose question is held out."""

    def __init__(self, chosen: settings.Leak) -> None:
        if not chosen.files:
            raise ConfigError("filter.rules: leak.files names no file; give the held-out items")
        self._slots = chosen.slots
        self._run_words = chosen.words
        self._texts: dict[int, str] = {}
        self._shapes: dict[int, str] = {}
        self._runs: dict[int, str] = {}
        for file in chosen.files:
            for where, question in _questions(_path(file)):
                self._hold_out(question, where)

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        return self.refuse(draft.instruction, draft.input)

    def refuse(self, instruction: str, input_text: str) -> str | None:
        question = f"{instruction.strip()} {input_text.strip()}"
        words = words_of(question)
        same = self._texts.get(_hash(words))
        if same is not None:
            return f"asks what is held out at {same}"
        shape = _shape(question) if self._slots else None
        alike = self._shapes.get(_hash(shape)) if shape is not None else None
        if alike is not None:
            return f"asks what is held out at {alike}, but for numbers and names"
        for run in _runs(words, self._run_words):
            where = self._runs.get(run)
            if where is not None:
                return f"shares {self._run_words} words in a row with {where}"
        return None

    def _hold_out(self, question: str, where: str) -> None:
        words = words_of(question)
        self._texts.setdefault(_hash(words), where)
        shape = _shape(question) if self._slots else None
        if shape is not None:
            self._shapes.setdefault(_hash(shape), where)
        for run in _runs(words, self._run_words):
            self._runs.setdefault(run, where)


def digest(file: str) -> str:
    """Return the xxh3-128 of a file of held-out items."""
    return digest_of(_path(file))


def _path(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():  # A pipe is none: it could be read once only.
        raise MissingError(f"filter.rules: leak.files: {path} is not there, or no file; give the held-out items")
    return path


def _hash(words: list[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words).encode("utf-8", "surrogatepass"))


def _shape(question: str) -> list[str] | None:
    """Return the words that are left when slots are taken out, or None where they are too few to tell."""
    words = words_of(_SLOT.sub(" ", question))
    return words if len(words) >= SLOT_WORDS else None


def _runs(words: list[str], length: int) -> Iterator[int]:
    if length:
        for start in range(len(words) - length + 1):
            yield _hash(words[start : start + length])


def _questions(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                item: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            except UNREADABLE as error:
                raise DataError(f"{path}:{number}: not a held-out item ({error}); mend the line") from None
            yield where, _question(item, f"{path}:{number}")


def _question(item: dict[str, Any], where: str) -> str:
    for key in _QUESTION_KEYS:
        if isinstance(item.get(key), str):
            return f"{item[key]} {item.get('input') or ''}"
    turns = [turn["content"] for turn in item.get("messages", ()) if turn.get("role") == "user"]
    if not turns:
        raise DataError(f"{where}: a held-out item has none of {', '.join(_QUESTION_KEYS)}, messages; add one")
    return " ".join(turns)

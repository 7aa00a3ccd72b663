"""A user's own prompts: a JSONL file of instructions or conversations -> records, read as they are asked for.

Promises that the whole file is checked before anything is asked, and memory that does not grow with it. Knows nothing
of ids, seeds or counts; `engine.prompts` makes prompts of what is described here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from engine.constraints import KEYS as FORM_KEYS
from engine.constraints import Constraints
from engine.errors import DataError
from engine.lines import LineFile, decode_line
from engine.progress import note
from engine.rows import Constraint, Message, Role

QUESTION_KEYS = ("instruction", "prompt", "messages")
"""Where a line may say what is asked: in one of these."""
TEXT_KEYS = ("input", "template")
READ_KEYS = frozenset((*QUESTION_KEYS, *TEXT_KEYS, *FORM_KEYS, "max_tokens"))
UNREAD_SHOWN = 8
"""Names of other keys that are said; a file may have as many as it has lines."""


class Record(NamedTuple):
    """A line of a prompt file."""

    instruction: str
    input: str
    template: str
    prefix: tuple[Message, ...]
    constraint: Constraint | None
    max_tokens: int | None


class PromptFile:
    """The records of a file, in its order."""

    def __init__(self, path: Path) -> None:
        """Read and check the file.

        Raises: MissingError where it is not there, DataError or ConfigError with `path:line` where a line is no prompt.
        """
        self._path = path
        self._constraints = Constraints(path.parent)
        self.plain = True
        """No record has an input."""
        self._unread: dict[str, None] = {}
        said = _Said()

        def check(number: int, line: bytes) -> None:
            record = self._record(number, line)
            said.add(record.instruction, record.template)
            self.plain = self.plain and not record.input

        self._lines = LineFile(path, check)
        if not len(self._lines):
            raise DataError(f"{path}: holds no prompts; give one JSON object a line")
        self.fingerprint = self._lines.digest
        self.schemas = self._constraints.digests()
        """Hashes of the schemas whose files the records name, by these names."""
        self.templates = frozenset(said.templates)
        """Names of the templates that the records say they are from."""
        self.disjoint = said.disjoint()
        """No instruction stands under two templates."""
        if self._unread:
            names = [repr(key) for key in self._unread]
            shown = ", ".join([*names[:UNREAD_SHOWN], "..."] if len(names) > UNREAD_SHOWN else names)
            note(f"{path}: keys that are not read: {shown} (those that are: docs/sampling.md)")

    def __len__(self) -> int:
        return len(self._lines)

    def records(self, start: int = 0) -> Iterator[tuple[int, Record]]:
        """Yield the records from one on, each with its line number.

        Raises: DataError where the file has changed since it was checked.
        """
        for number, line in self._lines.lines(start):
            yield number, self._record(number, line, checked=True)

    def _record(self, number: int, line: bytes, *, checked: bool = False) -> Record:
        # JSON Lines of a table have a null where a row has no value.
        data = {key: value for key, value in decode_line(self._path, number, line).items() if value is not None}
        where = self._where(number)
        if not checked:
            self._note_unread(data)
        given = [key for key in QUESTION_KEYS if key in data]
        if len(given) > 1:
            raise DataError(f"{where}: {' and '.join(given)} each say what is asked; keep one of them")
        if not given:
            raise DataError(f"{where}: nothing is asked; give a text under instruction or prompt, or messages")
        for key in (*QUESTION_KEYS[:2], *TEXT_KEYS):
            if not isinstance(data.get(key, ""), str):
                raise DataError(f"{where}: {key} must be a text; mend the line")
        prefix: tuple[Message, ...] = ()
        instruction = data[given[0]]
        if "messages" in data:
            instruction, prefix = self._from_messages(number, instruction)
        constraint = self._constraints.of(data, where=where, checked=checked)
        max_tokens = data.get("max_tokens")
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
            raise DataError(f"{where}: max_tokens must be a whole number above 0; mend the line")
        texts = instruction, data.get("input", ""), data.get("template", "default")
        return Record(*texts, prefix, constraint, max_tokens)

    def _note_unread(self, data: Mapping[str, Any]) -> None:
        for key in data:
            if key not in READ_KEYS and len(self._unread) <= UNREAD_SHOWN:
                self._unread[key] = None

    def _from_messages(self, number: int, messages: Any) -> tuple[str, tuple[Message, ...]]:
        """Take the user turn of an OpenAI-style conversation; a system turn before it is for the teacher only."""
        roles = [turn.get("role") for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
        if roles not in (["user"], ["system", "user"]) or not all(
            isinstance(turn.get("content"), str) for turn in messages
        ):
            raise DataError(
                f"{self._where(number)}: messages must be one user turn of text, with at most a system turn before it"
            )
        turns: list[tuple[Role, str]] = [(turn["role"], turn["content"]) for turn in messages]
        return turns[-1][1], tuple(Message(role, content) for role, content in turns[:-1])

    def _where(self, number: int) -> str:
        return f"{self._path}:{number}"


PARTS = 16
"""Instructions are compared in so many parts, one after the other, so that comparing takes little memory."""


class _Said:
    """Which instructions stand under which templates, in 12 bytes a record, for as long as the file is checked."""

    def __init__(self) -> None:
        self.templates: dict[str, int] = {}
        self._parts = [(array("Q"), array("I")) for _ in range(PARTS)]

    def add(self, instruction: str, template: str) -> None:
        key = xxhash.xxh3_64_intdigest(instruction.strip().encode("utf-8", "surrogatepass"))
        keys, templates = self._parts[key % PARTS]
        keys.append(key)
        templates.append(self.templates.setdefault(template, len(self.templates)))

    def disjoint(self) -> bool:
        """Say whether no instruction is under two templates; if two had one hash, it would only be said less often."""
        return len(self.templates) == 1 or all(_disjoint(keys, templates) for keys, templates in self._parts)


def _disjoint(keys: array[int], templates: array[int]) -> bool:
    import numpy as np

    order = np.frombuffer(keys, np.uint64).argsort()
    ordered, of = np.frombuffer(keys, np.uint64)[order], np.frombuffer(templates, np.uint32)[order]
    return not ((ordered[1:] == ordered[:-1]) & (of[1:] != of[:-1])).any()

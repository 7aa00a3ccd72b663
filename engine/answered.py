"""Answered: answers that wait for an earlier prompt to be committed, on the disk, so that nobody pays for them twice.

Promises that what `append` was given is known to the next part of the run until its prompt is committed, and that a
file goes once nothing in it waits. Rows and counts do not depend on it: without these files prompts are asked again.
Knows prompts by id and index, not what an answer means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from engine.decode import UNREADABLE
from engine.errors import DataError
from engine.part import PART, Part, disk
from engine.rows import Completion, Prompt

NAME = re.compile(rf"answered-(\d{{5,}})\.jsonl\{PART}")
FILE_BYTES = 16 * 2**20
"""A new file is begun at this size: behind one slow answer they stay, else there are one or two."""


class Answer(msgspec.Struct, frozen=True):
    """A line: an answer, and the place of its prompt in the order of commitment."""

    index: int
    completion: Completion


class Answered:
    """The files of one run folder."""

    def __init__(self, folder: Path, position: int) -> None:
        """Take in what an earlier part of the run left, but for answers to prompts before `position`."""
        self._folder = folder
        self._known: dict[str, Completion] = {}
        self._place: dict[str, int] = {}
        """The file of each answer that waits."""
        self._waiting: Counter[int] = Counter()
        """How many answers of each file that is there wait yet."""
        self._part: Part | None = None
        self._encoder = msgspec.json.Encoder()
        numbers = sorted(int(found[1]) for path in folder.glob("answered-*") if (found := NAME.fullmatch(path.name)))
        for number in numbers:
            self._waiting[number] = 0
            for answer in _answers(self._path(number)):
                if answer.index >= position:
                    self._known[answer.completion.id] = answer.completion
                    self._waits(answer.completion.id, number)
        self._number = max(numbers, default=-1)
        """Of the file that is appended to, or was last."""

    @property
    def is_empty(self) -> bool:
        """Say whether no answer waits."""
        return not self._place

    def take(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """Return the answers that an earlier part of the run had to these prompts."""
        return [self._known.pop(prompt.id) for prompt in prompts if prompt.id in self._known]

    def append(self, answers: Sequence[Answer]) -> None:
        """Keep answers, and delete files that are not needed any more."""
        if answers:
            if self._part is None:
                self._number += 1
                self._waiting[self._number] = 0
                self._part = Part(self._path(self._number))
            for answer in answers:
                self._waits(answer.completion.id, self._number)
            self._part.append([self._encoder.encode(answer) + b"\n" for answer in answers], len(answers))
            if self._part.bytes >= FILE_BYTES:
                self._shut()
        self._sweep()

    def committed(self, prompt_id: str) -> None:
        """Note that a prompt has reached its end, so that no answer to it is needed."""
        self._known.pop(prompt_id, None)
        number = self._place.pop(prompt_id, None)
        if number is not None:
            self._waiting[number] -= 1

    def close(self) -> None:
        """End this part of the run: what waits stays for the next."""
        self._shut()
        self._sweep()

    def discard(self) -> None:
        """End the run: nothing waits for more."""
        self._place.clear()
        self._waiting = Counter(dict.fromkeys(self._waiting, 0))
        self.close()

    def _waits(self, prompt_id: str, number: int) -> None:
        before = self._place.get(prompt_id)
        if before is not None:
            self._waiting[before] -= 1
        self._place[prompt_id] = number
        self._waiting[number] += 1

    def _shut(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _sweep(self) -> None:
        """Delete the files in which nothing waits, but for the one that is appended to."""
        for number, count in list(self._waiting.items()):
            if not count and (self._part is None or number != self._number):
                with disk(self._path(number)):
                    self._path(number).unlink(missing_ok=True)
                del self._waiting[number]

    def _path(self, number: int) -> Path:
        return self._folder / f"answered-{number:05d}.jsonl{PART}"


def _answers(path: Path) -> Iterator[Answer]:
    """Yield the answers of a file; a line that is torn, or that a crash of the machine has spoilt, is left out.

    Raises: DataError where the file cannot be read.
    """
    decoder = msgspec.json.Decoder(Answer)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable, or delete it") from None
    with file:
        for line in file:
            try:
                yield decoder.decode(line)
            except UNREADABLE:
                continue

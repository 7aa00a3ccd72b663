"""Memory that the compiled filter works in: a chunk of lines with what is known of its rows, names, marks.

Promises that every buffer ends in bytes that may be read (engine/native/memory.py), and that an address is only given
out for memory that its owner keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.columns import BadLine
from engine.filter import DUPLICATE
from engine.filter_batch import put_mark
from engine.native import commit, lines
from engine.native.memory import PADDING

WORD = 8
ROW_BYTES = WORD * lines.ROW_WORDS
ROWS_AT_FIRST = 256


class Room:
    """Memory at an address."""

    __slots__ = ("address", "array")

    def __init__(self, array: Any) -> None:
        self.array = array
        self.address = int(array.ctypes.data)

    @classmethod
    def of(cls, data: bytes) -> Room:
        """Return a copy of some bytes."""
        return cls(np.frombuffer(data + bytes(PADDING), np.uint8))

    def at_least(self, size: int) -> Room:
        """Return this memory, or larger one, whose content is lost, if it has not so many bytes."""
        return self if len(self.array) >= size + PADDING else Room(np.empty(size * 5 // 4 + PADDING, np.uint8))

    def until(self, end: int) -> memoryview:
        """Return what stands before an address."""
        return memoryview(self.array)[: end - self.address]


def empty() -> Room:
    """Return memory of no size yet."""
    return Room(np.empty(PADDING, np.uint8))


class Chunk:
    """Some lines and what is known of their rows; its memory is used again for later lines."""

    def __init__(self) -> None:
        self.name = ""
        self.first_line = 1
        """Number of the first line in its source; known when the chunks before are judged."""
        self.count = self.blank = 0
        self.size = 0
        self.bad: list[tuple[int, str]] = []
        """Lines that are not rows, by their place in the chunk, and why."""
        self.topics: dict[int, str] = {}
        """What the cap counts a row under, where Python read it."""
        self.data = empty()
        self.scratch = empty()
        self.rows = Room(np.empty((ROWS_AT_FIRST, lines.ROW_WORDS), np.int64))
        self.fields = Room(np.zeros(lines.FIELD_COUNT * lines.FIELD_WORDS, np.int64))

    def fill(self, name: str, data: bytes) -> None:
        """Take lines in; a missing last newline is put in."""
        self.name, self.size, self.count, self.blank, self.bad, self.topics = name, len(data), 0, 0, [], {}
        self.data = self.data.at_least(self.size + 1)
        # Decoded fields, the key and the first words are each no longer than the line.
        self.scratch = self.scratch.at_least(3 * self.size + 4 * PADDING)
        self.data.array[: self.size] = np.frombuffer(data, np.uint8)
        if not data.endswith(b"\n"):
            self.data.array[self.size] = ord("\n")
            self.size += 1

    def more_rows(self) -> None:
        """Make room for more rows than there are."""
        rows = np.empty((2 * len(self.rows.array), lines.ROW_WORDS), np.int64)
        rows[: self.count] = self.rows.array[: self.count]
        self.rows = Room(rows)

    def column(self, word: int) -> Any:
        """Return one word of every row."""
        return self.rows.array[: self.count, word]

    def between(self, start: int, end: int) -> bytes:
        """Return the bytes between two addresses."""
        begin = self.data.address
        return bytes(self.data.array[start - begin : end - begin])

    def line(self, place: int) -> bytes:
        """Return a line."""
        return self.between(*self.rows.array[place, [lines.LINE, lines.NEXT]].tolist())

    def numbers(self, first: int) -> Any:
        """Return the number in the input of every line that is not blank."""
        there = self.column(lines.STATE) != lines.BLANK
        return there.cumsum() - there + first

    def bad_lines(self, first: int) -> dict[int, BadLine]:
        """Return the lines that are not rows, by their number in the input."""
        numbers = self.numbers(first)
        return {
            int(numbers[place]): BadLine(self.first_line + place, reason, self.line(place))
            for place, reason in self.bad
        }


class Names:
    """Some names, as the compiled code compares them; None is a name that no field has."""

    def __init__(self, names: Sequence[str | None]) -> None:
        spelled = [b"" if name is None else name.encode() for name in names]
        self._text = Room.of(b"".join(spelled))
        table, place = [], self._text.address
        for name, text in zip(names, spelled, strict=True):
            table.append((place, -1 if name is None else len(text)))
            place += len(text)
        self._table = Room(np.array(table, np.int64))
        self.address = self._table.address


class Marks:
    """What is put into rejected rows: rule and reason, each text once.

    Number 0 is the duplicates'; 1 and 2 go around the name of a cap.
    """

    MOST = 4096

    def __init__(self, around_topic: tuple[bytes, bytes]) -> None:
        self._first = (put_mark(DUPLICATE.rule, DUPLICATE.reason), *around_topic)
        self.numbers: dict[int, dict[tuple[int, ...], int]] = {}
        """Of each mark, by the verdict and what it is for."""
        self.longest = 0
        self._texts: list[Room] = []
        self._table = Room(np.zeros((2 * self.MOST, 2), np.int64))
        self._clear()

    @property
    def address(self) -> int:
        """Return where the table is: address and length of each text."""
        return self._table.address

    def put(self, verdict: int, what: tuple[int, ...], text: bytes) -> None:
        """Add a mark."""
        number = len(self._texts)
        if number == len(self._table.array):
            self._table = Room(np.concatenate([self._table.array, np.zeros_like(self._table.array)]))
        room = Room.of(text)
        self._texts.append(room)
        self._table.array[number] = room.address, len(text)
        self.numbers[verdict][what] = number
        self.longest = max(self.longest, len(text))

    def text(self, number: int) -> bytes:
        """Return a mark."""
        return bytes(self._texts[number].array[:-PADDING])

    def tidy(self) -> None:
        """Forget the marks if they are many; their numbers hold until then."""
        if len(self._texts) > self.MOST:
            self._clear()

    def _clear(self) -> None:
        self.longest = 0
        self.numbers = {verdict: {} for verdict in range(commit.FULL + 1)}
        self._texts.clear()
        for text in self._first:
            self.put(commit.DUPLICATE, (), text)

"""Memory that the compiled filter works in: a chunk of lines with what is known of its rows, names, marks.

Knows where the words of a row are, not what they mean.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

from engine.columns import BadLine
from engine.filter import DUPLICATE
from engine.filter_batch import put_mark
from engine.native import commit, lines
from engine.native.memory import PADDING
from engine.room import WORD, Room

ROW_BYTES = WORD * lines.ROW_WORDS
ROWS_AT_FIRST = 256


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
        self.data = Room(0)
        self.scratch = Room(0)
        self.fields = Room(WORD * lines.FIELD_COUNT * lines.FIELD_WORDS)
        self._make_rows(ROWS_AT_FIRST)

    def fill(self, name: str, data: bytes) -> None:
        """Take lines in; a missing last newline is put in."""
        self.name, self.size, self.count, self.blank, self.bad, self.topics = name, len(data), 0, 0, [], {}
        self.data = self.data.at_least(self.size + 1)
        # Decoded fields, the key and the first words are each no longer than the line.
        self.scratch = self.scratch.at_least(3 * self.size + 4 * PADDING)
        self.data.data[: self.size] = data
        if not data.endswith(b"\n"):
            self.data.data[self.size] = ord("\n")
            self.size += 1

    def more_rows(self) -> None:
        """Make room for more rows than there are."""
        before, used = self.rows, ROW_BYTES * self.count
        self._make_rows(2 * self.most_rows)
        self.rows.data[:used] = before.data[:used]

    def _make_rows(self, most: int) -> None:
        self.most_rows = most
        self.rows = Room(ROW_BYTES * most)
        self.words = self.rows.words()
        """The words of all rows, one row behind the other."""
        self.found = Room(WORD * most)
        """Places of some rows."""

    def between(self, start: int, end: int) -> bytes:
        """Return the bytes between two addresses."""
        begin = self.data.address
        return bytes(self.data.data[start - begin : end - begin])

    def line(self, place: int) -> bytes:
        """Return a line."""
        row = lines.ROW_WORDS * place
        return self.between(self.words[row + lines.LINE], self.words[row + lines.NEXT])

    def numbers(self, first: int) -> list[int]:
        """Return the number in the input of every line that is not blank."""
        states = self.words[lines.STATE : lines.ROW_WORDS * self.count : lines.ROW_WORDS]
        return list(accumulate((state != lines.BLANK for state in states), initial=first))

    def bad_lines(self, first: int) -> dict[int, BadLine]:
        """Return the lines that are not rows, by their number in the input."""
        numbers = self.numbers(first)
        return {
            numbers[place]: BadLine(self.first_line + place, reason, self.line(place)) for place, reason in self.bad
        }


class Names:
    """Some names, as the compiled code compares them; None is a name that no field has."""

    def __init__(self, names: Sequence[str | None]) -> None:
        spelled = [b"" if name is None else name.encode() for name in names]
        self._text = Room.of(b"".join(spelled))
        self._table, place = array("q"), self._text.address
        for name, text in zip(names, spelled, strict=True):
            self._table.extend((place, -1 if name is None else len(text)))
            place += len(text)
        self.address = self._table.buffer_info()[0]


class Marks:
    """What is put into rejected rows: rule and reason, each text once.

    Number 0 is the duplicates'; 1 and 2 go around the name of a cap.
    """

    MOST = 4096

    def __init__(self, around_topic: tuple[bytes, bytes]) -> None:
        self._first = (put_mark(DUPLICATE.rule, DUPLICATE.reason), *around_topic)
        self.numbers: dict[tuple[int, ...], int] = {}
        """Of each mark, by the verdict and what it is for."""
        self.longest = 0
        self._texts: list[Room] = []
        self._table = array("q")
        self._clear()

    @property
    def address(self) -> int:
        """Return where the table is: address and length of each text."""
        return self._table.buffer_info()[0]

    def put(self, what: tuple[int, ...], text: bytes) -> int:
        """Add a mark and return its number."""
        room, number = Room.of(text), len(self._texts)
        self._texts.append(room)
        self._table.extend((room.address, len(text)))
        self.numbers[what] = number
        self.longest = max(self.longest, len(text))
        return number

    def text(self, number: int) -> bytes:
        """Return a mark."""
        return bytes(self._texts[number].data[:-PADDING])

    def tidy(self) -> None:
        """Forget the marks if they are many; their numbers hold until then."""
        if len(self._texts) > self.MOST:
            self._clear()

    def _clear(self) -> None:
        self.longest = 0
        self.numbers.clear()
        self._texts.clear()
        del self._table[:]
        for number, text in enumerate(self._first):
            self.put((commit.DUPLICATE, number), text)

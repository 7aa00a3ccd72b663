"""Lines of JSON -> rows with the fields that the filter reads, and a reason for every line that is not such a row.

A batch is decoded in one call where it is clean and line by line where it is not; both give the same rows. Fields
that the filter does not read are checked to be JSON in valid UTF-8 and are otherwise left alone. Promises that
every line that is not blank ends as exactly one row or one bad line. Knows nothing of files or rules.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

BRACE_OPEN, BRACE_CLOSE = ord("{"), ord("}")


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """What the fields are called in the user's rows."""

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    template: str = "template"
    messages: str = ""
    """Field that holds a chat; it then stands for instruction and output."""


class Text(msgspec.Struct, gc=False):
    """What the rules read of one row."""

    instruction: str
    output: str
    input: str | None = ""
    template: str | None = ""
    finish_reason: str | None = ""
    rule: str | None = ""
    id: Any = ""
    aborted: Any = False


MARKS = ("rule", "reason", "row_number")
"""Keys that the filter puts into a rejected row; the rows of an earlier run have them."""


class BadLine(msgspec.Struct, frozen=True):
    """A line that is not a row."""

    number: int
    """Line number in its file, from 1."""
    reason: str
    line: bytes


class Batch:
    """Consecutive lines of one file, as they were read; a missing last newline is put in."""

    __slots__ = ("_lines", "data", "first_line", "name")

    def __init__(self, name: str, first_line: int, lines: list[bytes] | bytes) -> None:
        self.name = name
        self.first_line = first_line
        self._lines: list[bytes] | None = None
        if isinstance(lines, list):
            if lines and not lines[-1].endswith(b"\n"):
                lines[-1] += b"\n"
            self._lines = lines
            self.data = b"".join(lines)
        else:
            self.data = lines if lines.endswith(b"\n") or not lines else lines + b"\n"

    @property
    def lines(self) -> list[bytes]:
        """Return the lines, each with its newline."""
        if self._lines is None:
            self._lines = io.BytesIO(self.data).readlines()
        return self._lines


class Parsed(msgspec.Struct):
    """The rows of a batch."""

    lines: list[bytes]
    """One a row, each with its newline."""
    data: bytes
    """The lines, joined."""
    rows: list[Any]
    """One a line: Text, or a decoder's own struct with the fields that were asked for."""
    bad: list[BadLine]
    bad_places: list[int]
    """Where the bad lines stand among rows and bad lines, from 0."""


class Parser:
    """Decodes batches."""

    def __init__(self, columns: Columns, fields: Iterable[str] = ()) -> None:
        self._convert: Callable[[Any], Text] | None = None
        if columns.messages:
            self._convert = text_of_chat
        self._decoder = msgspec.json.Decoder(_chat_struct(columns) if columns.messages else _struct(columns, fields))

    def parse(self, batch: Batch) -> Parsed:
        """Return the rows and the bad lines of a batch."""
        lines, data = batch.lines, batch.data
        # As many objects as lines, each of which is enclosed, means that each line is one.
        if _is_enclosed(lines) and _is_utf8(lines, data):
            try:
                rows = self._rows(data)
            except (msgspec.DecodeError, ValueError, RecursionError):
                rows = []
            if len(rows) == len(lines):
                return Parsed(lines, data, rows, [], [])
        return self._line_by_line(lines, batch.first_line)

    def _rows(self, data: bytes) -> list[Any]:
        rows = self._decoder.decode_lines(data)
        return [self._convert(row) for row in rows] if self._convert else rows

    def _line_by_line(self, lines: list[bytes], first_line: int) -> Parsed:
        good: list[bytes] = []
        rows: list[Any] = []
        bad: list[BadLine] = []
        places: list[int] = []
        for number, line in enumerate(lines, first_line):
            if line.isspace():
                continue
            row = self.read_line(line)
            if isinstance(row, str):
                places.append(len(good) + len(bad))
                bad.append(BadLine(number, row, line))
            else:
                rows.append(row)
                good.append(line)
        return Parsed(good, b"".join(good), rows, bad, places)

    def read_line(self, line: bytes) -> Any:
        """Return the row that a line holds, or the reason (a str) why it is none."""
        try:
            if not line.isascii():
                line.decode()
            row = self._decoder.decode(line)
            return self._convert(row) if self._convert else row
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return _reason(error)


def _is_enclosed(lines: list[bytes]) -> bool:
    """Say whether every line runs from `{` to `}`: JSON has no `}` before `{`, so no value goes on to a next line."""
    return not [line for line in lines if line[0] != BRACE_OPEN or line[-2] != BRACE_CLOSE]


def _is_utf8(lines: list[bytes], data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        b"".join([line for line in lines if not line.isascii()]).decode()
    except UnicodeDecodeError:
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start} of the line"
    if isinstance(error, RecursionError):
        return "not read: nested too deeply"
    return f"not a row: {error}"


def _struct(columns: Columns, fields: Iterable[str]) -> type[msgspec.Struct]:
    named: list[Any] = [
        ("instruction", str, msgspec.field(name=columns.instruction)),
        ("output", str, msgspec.field(name=columns.output)),
    ]
    for field in sorted(set(fields)):
        column = getattr(columns, field, field)
        kind: Any = Any if field in _ANY else str | None
        named.append((field, kind, msgspec.field(default="", name=column)))
    return msgspec.defstruct("Fields", named, gc=False)


_ANY = ("id", "aborted")
"""Fields whose type is the user's affair."""


class _Turn(msgspec.Struct, gc=False):
    """One chat turn, in OpenAI's words or in ShareGPT's."""

    role: str = ""
    content: str | None = ""
    sender: str = msgspec.field(default="", name="from")
    value: str = ""


class _Chat(msgspec.Struct, gc=False):
    turns: list[_Turn]


def _chat_struct(columns: Columns) -> type[msgspec.Struct]:
    extra: list[Any] = [("id", Any, msgspec.field(default=""))]
    extra += [(name, str | None, msgspec.field(default="", name=getattr(columns, name, name))) for name in _CHAT_EXTRA]
    turns = ("turns", list[_Turn], msgspec.field(name=columns.messages))
    return msgspec.defstruct("Chat", [turns, *extra], gc=False)


_CHAT_EXTRA = ("template", "finish_reason", "rule")
_ASSISTANT = ("assistant", "gpt", "model")
_SYSTEM = ("system", "developer")


def text_of_chat(chat: Any) -> Text:
    """Return a chat's last answer as the output and what was said before it, system prompt aside, as the instruction.

    Raises: ValueError where the last turn is not the assistant's.
    """
    turns = [(turn.role or turn.sender, turn.content or turn.value) for turn in chat.turns]
    if not turns or turns[-1][0] not in _ASSISTANT:
        raise ValueError("the last message is not the assistant's")
    asked = [content for role, content in turns[:-1] if role not in _SYSTEM]
    return Text(
        instruction="\n\n".join(asked),
        output=turns[-1][1],
        template=chat.template,
        finish_reason=chat.finish_reason,
        rule=chat.rule,
        id=chat.id,
    )

"""Slots: what fills a template's text, by number, whether it is computed, held or in a file.

Promises that a value is the same each time it is asked for, and memory that does not grow with a file: a small one is
held, a large one is read again, a line at a time. Knows nothing of the order in which values are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec

from engine.errors import DataError, TemplateError
from engine.lines import LineFile, decode_line, numbered_lines

HELD_BYTES = 1 << 20
"""Largest file whose values are held: they take about five times as much, and a row of a larger one 15 microseconds."""
Decode = Callable[[int, bytes], tuple[str, ...]]
"""Takes the number and the text of a line, and returns its values or raises."""


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a template file says of a slot: one of four kinds."""

    range: tuple[int | float, int | float] | None = None
    step: int | float = 1
    choices: list[str | int | float] | None = None
    lines: str | None = None
    jsonl: str | None = None
    column: str | None = None


class Values:
    """Values of one or more slots, by number: row i gives a value to each of the slots in `slots`."""

    def __init__(self, slots: tuple[str, ...], size: int) -> None:
        self.slots = slots
        self.size = size

    def row(self, number: int) -> tuple[str, ...]:
        """Return row `number` (0 <= number < size): one text per slot."""
        raise NotImplementedError


class RangeValues(Values):
    """Evenly spaced numbers, both ends included, printed with as many decimals as the step has."""

    def __init__(self, slot: str, start: Decimal, stop: Decimal, step: Decimal) -> None:
        super().__init__((slot,), int((stop - start) / step) + 1)
        self._start = start
        self._step = step

    def row(self, number: int) -> tuple[str, ...]:
        return (str(self._start + number * self._step),)


class ListValues(Values):
    """Rows held in memory."""

    def __init__(self, slots: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        super().__init__(slots, len(rows))
        self._rows = rows

    def row(self, number: int) -> tuple[str, ...]:
        return self._rows[number]


class FileValues(Values):
    """Rows that are lines of a file, all decoded once to see that they can be."""

    def __init__(self, slots: tuple[str, ...], path: Path, decode: Decode) -> None:
        self._lines = LineFile(path, decode)
        self._decode = decode
        super().__init__(slots, len(self._lines))

    def row(self, number: int) -> tuple[str, ...]:
        return self._decode(*self._lines[number])


def values_of(template: str, slots: Mapping[str, Slot], folder: Path) -> list[Values]:
    """Return the values of a template's slots; those that name the same JSONL file are filled from one row.

    Raises: TemplateError, MissingError or DataError, naming the slot, the file or the line.
    """
    sources: list[Values] = []
    tables: dict[str, dict[str, str]] = {}
    for name, slot in slots.items():
        if sum(kind is not None for kind in (slot.range, slot.choices, slot.lines, slot.jsonl)) != 1:
            raise TemplateError(f"template {template}: slot {name} needs one of range, choices, lines, jsonl")
        if slot.jsonl is not None:
            tables.setdefault(slot.jsonl, {})[name] = slot.column or name
        else:
            sources.append(_simple(template, name, slot, folder))
    for file, columns in tables.items():
        path = folder / file
        sources.append(_of_file(tuple(columns), path, _columns(path, list(columns.values()))))
    for source in sources:
        if source.size < 1:
            raise TemplateError(f"template {template}: slot {', '.join(source.slots)} has no values")
    return sources


def _simple(template: str, name: str, slot: Slot, folder: Path) -> Values:
    if slot.range is not None:
        start, stop, step = (Decimal(str(number)) for number in (*slot.range, slot.step))
        if not all(number.is_finite() for number in (start, stop, step)) or step <= 0 or stop < start:
            raise TemplateError(f"template {template}: slot {name} needs range = [low, high] and a step above 0")
        return RangeValues(name, start, stop, step)
    if slot.choices is not None:
        return ListValues((name,), [(str(choice),) for choice in slot.choices])
    return _of_file((name,), folder / str(slot.lines), lambda _, line: (line.decode(),))


def _of_file(slots: tuple[str, ...], path: Path, decode: Decode) -> Values:
    if path.is_file() and path.stat().st_size > HELD_BYTES:
        return FileValues(slots, path, decode)
    return ListValues(slots, [decode(*line) for line in numbered_lines(path)])


def _columns(path: Path, columns: Sequence[str]) -> Decode:
    """Return what takes these columns from a line of JSONL."""

    def decode(number: int, line: bytes) -> tuple[str, ...]:
        record = decode_line(path, number, line)
        missing = [column for column in columns if not isinstance(record.get(column), str | int | float)]
        if missing:
            raise DataError(f"{path}:{number}: no text or number under {missing[0]!r}; every row needs it")
        return tuple(str(record[column]) for column in columns)

    return decode

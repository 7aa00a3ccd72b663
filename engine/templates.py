"""Template files: a text with slots, and where each slot's values come from.

Promises that filling a slot only ever pastes text: a slot is a bare name, so nothing is evaluated and no attribute
is reached. Knows nothing of order, seeds or counts; `engine.prompts` draws from what is described here.

A template file is TOML:

    [[template]]
    id = "temperature"
    text = "Convert temperature.\\n\\n{value} F"
    weight = 1.0                                  # share of the prompts, relative to the other templates
    system = "You convert temperatures."          # seen by the teacher only
    examples = [{ user = "...", assistant = "..." }]  # few-shot turns, seen by the teacher only
    max_tokens = 32                               # overrides sampling.max_tokens
    regex = '-?\\d+\\.\\d C'                       # form of the answer; or: choice = [...], json_schema = "file.json"
    [template.slots.value]
    range = [-40, 120]                            # both ends included; `step` may be 0.1
    # or: choices = ["a", "b"]
    # or: lines = "file.txt"                      # a value a line
    # or: jsonl = "file.jsonl", column = "name"   # slots of one file are taken from the same row
"""

from __future__ import annotations

import codecs
import itertools
import string
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
import xxhash

from engine.constraints import constraint_of, schema_file
from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError, TemplateError
from engine.mistake import explain
from engine.rows import Constraint, Message


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


class Template:
    """A text with slots; combination i fills them all, 0 <= i < size."""

    def __init__(self, entry: _Entry, values: Sequence[Values], constraint: Constraint | None) -> None:
        self.id = entry.id
        self.text = entry.text
        self.weight = entry.weight
        self.max_tokens = entry.max_tokens
        self.prefix = _prefix(entry)
        self.constraint = constraint
        self.literal = _parts(entry.id, entry.text)[0][0]
        self._values = values
        self.size = 1
        for source in values:
            self.size *= source.size

    def fill(self, values: Mapping[str, str]) -> str:
        """Paste values into the slots.

        Raises: TemplateError where a slot has no value.
        """
        pieces = []
        for literal, slot in _parts(self.id, self.text):
            pieces.append(literal)
            if slot is not None:
                if slot not in values:
                    raise TemplateError(f"template {self.id}: slot {{{slot}}} has no value")
                pieces.append(values[slot])
        return "".join(pieces)

    def values(self, combination: int) -> dict[str, str]:
        """Return the slot values of one combination."""
        filled: dict[str, str] = {}
        for source in self._values:
            combination, number = divmod(combination, source.size)
            filled.update(zip(source.slots, source.row(number), strict=True))
        return filled


class _Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    assistant: str


class _Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    range: tuple[int | float, int | float] | None = None
    step: int | float = 1
    choices: list[str | int | float] | None = None
    lines: str | None = None
    jsonl: str | None = None
    column: str | None = None


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    text: str
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = 1.0
    system: str = ""
    examples: list[_Example] = []
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    slots: dict[str, _Slot] = {}

    @property
    def form(self) -> dict[str, Any]:
        """The keys that say what form its answers have."""
        return {"json_schema": self.json_schema, "regex": self.regex, "choice": self.choice}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    template: Annotated[list[_Entry], msgspec.Meta(min_length=1)]


def load_templates(path: Path) -> list[Template]:
    """Read a template file with everything that its slots name.

    Raises: MissingError, TemplateError or DataError, each naming the file and the template or line.
    """
    entries = _read(path)
    if len({entry.id for entry in entries}) < len(entries):
        raise TemplateError(f"{path}: two templates have the same id; give each its own")
    return [_template(entry, path.parent) for entry in entries]


def content_hash(path: Path) -> str:
    """Return the xxh3-128 of a template file and of every file that its slots read."""
    digest = xxhash.xxh3_128(path.read_bytes())
    entries = _read(path)
    names = {name for entry in entries for slot in entry.slots.values() for name in (slot.lines, slot.jsonl) if name}
    names |= {name for entry in entries if (name := schema_file(entry.form))}
    for name in sorted(names):
        digest.update((path.parent / name).read_bytes())
    return digest.hexdigest()


def disjoint(templates: Sequence[Template]) -> bool:
    """Say whether no two templates can make the same text, white space around it aside: their beginnings differ."""
    starts = sorted(template.literal.strip() for template in templates)
    return all(not later.startswith(earlier) for earlier, later in itertools.pairwise(starts))


def _read(path: Path) -> list[_Entry]:
    try:
        data = tomllib.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8).decode())
        return msgspec.convert(data, _File).template
    except FileNotFoundError:
        raise MissingError(f"prompts.templates: {path} is not there; give the path of a template file") from None
    except OSError as error:
        raise MissingError(f"prompts.templates: {path} cannot be read ({error.strerror}); mend that") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise TemplateError(f"{path}: {explain(str(error), _File)}") from None


def _template(entry: _Entry, folder: Path) -> Template:
    slots = {slot for _, slot in _parts(entry.id, entry.text) if slot is not None}
    for slot in sorted(slots - entry.slots.keys()):
        raise TemplateError(f"template {entry.id}: slot {{{slot}}} has no source; add [template.slots.{slot}]")
    for slot in sorted(entry.slots.keys() - slots):
        raise TemplateError(f"template {entry.id}: slot {slot} is described but not in the text; remove it or use it")
    constraint = constraint_of(entry.form, where=f"template {entry.id}", folder=folder)
    return Template(entry, _sources(entry, folder), constraint)


def _sources(entry: _Entry, folder: Path) -> list[Values]:
    sources: list[Values] = []
    tables: dict[str, dict[str, str]] = {}
    for name, slot in entry.slots.items():
        if sum(kind is not None for kind in (slot.range, slot.choices, slot.lines, slot.jsonl)) != 1:
            raise TemplateError(f"template {entry.id}: slot {name} needs one of range, choices, lines, jsonl")
        if slot.jsonl is not None:
            tables.setdefault(slot.jsonl, {})[name] = slot.column or name
        else:
            sources.append(_simple_source(entry.id, name, slot, folder))
    for file, columns in tables.items():
        sources.append(ListValues(tuple(columns), _jsonl_rows(folder / file, list(columns.values()))))
    for source in sources:
        if source.size < 1:
            raise TemplateError(f"template {entry.id}: slot {', '.join(source.slots)} has no values")
    return sources


def _simple_source(template: str, name: str, slot: _Slot, folder: Path) -> Values:
    if slot.range is not None:
        start, stop, step = (Decimal(str(number)) for number in (*slot.range, slot.step))
        if not all(number.is_finite() for number in (start, stop, step)) or step <= 0 or stop < start:
            raise TemplateError(f"template {template}: slot {name} needs range = [low, high] and a step above 0")
        return RangeValues(name, start, stop, step)
    if slot.choices is not None:
        return ListValues((name,), [(str(choice),) for choice in slot.choices])
    path = folder / str(slot.lines)
    return ListValues((name,), [(line.decode(),) for _, line in numbered_lines(path)])


def _jsonl_rows(path: Path, columns: list[str]) -> list[tuple[str, ...]]:
    rows = []
    for number, line in numbered_lines(path):
        record = decode_line(path, number, line)
        missing = [column for column in columns if not isinstance(record.get(column), str | int | float)]
        if missing:
            raise DataError(f"{path}:{number}: no text or number under {missing[0]!r}; every row needs it")
        rows.append(tuple(str(record[column]) for column in columns))
    return rows


def numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """Return (line number from 1, line) of every line of a UTF-8 file that is not blank.

    Raises: MissingError where it is not there, DataError where a line is not UTF-8.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except FileNotFoundError:
        raise MissingError(f"{path} is not there; give the path of a file") from None
    except OSError as error:
        raise MissingError(f"{path} cannot be read ({error.strerror}); give the path of a file") from None
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.rstrip(b"\r")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise DataError(f"{path}:{number}: not UTF-8; convert the file") from None
        if text.strip():
            found.append((number, text))
    return found


def decode_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Decode one JSONL line that must hold an object.

    Raises: DataError with `path:line`.
    """
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except UNREADABLE as error:
        raise DataError(f"{path}:{number}: not a JSON object ({error}); mend or remove the line") from None


def _prefix(entry: _Entry) -> tuple[Message, ...]:
    turns = [Message("system", entry.system)] if entry.system else []
    for example in entry.examples:
        turns += [Message("user", example.user), Message("assistant", example.assistant)]
    return tuple(turns)


def _parts(template: str, text: str) -> list[tuple[str, str | None]]:
    """Split a text into (literal, slot) pairs; the last pair may have no slot."""
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError as error:
        raise TemplateError(f"template {template}: {error}; write a literal brace twice") from None
    for _, slot, spec, conversion in fields:
        if slot is not None and (not slot.isidentifier() or spec or conversion):
            written = slot + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise TemplateError(
                f"template {template}: slot {{{written}}} must be a plain name; nothing is evaluated in it"
            )
    return [(literal, slot) for literal, slot, _, _ in fields] or [("", None)]

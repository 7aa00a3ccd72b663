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
from pathlib import Path
from typing import Annotated, Any

import msgspec
import xxhash

from engine.constraints import constraint_of, schema_file
from engine.errors import MissingError, TemplateError
from engine.lines import add_file
from engine.mistake import explain
from engine.rows import Constraint, Message
from engine.slots import Slot, Values, values_of


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
    slots: dict[str, Slot] = {}

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
        add_file(digest, path.parent / name)
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
    return Template(entry, values_of(entry.id, entry.slots, folder), constraint)


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

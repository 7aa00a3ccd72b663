"""Record and Source: what a source gives, and how records become a held-out file."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from engine.errors import TemplateError
from engine.rows import hash_id


class Record(msgspec.Struct, frozen=True):
    """One real thing: a value for every slot that a template may have, and how to make the reference."""

    values: dict[str, str]
    reference: Callable[[list[str]], str]
    """Takes the template's slots, in order, and returns the reference."""


class Source(msgspec.Struct, frozen=True):
    """Where records come from."""

    text: str
    """Template text unless another is given."""
    template: str
    metric: str
    count: int
    """Items that the shipped file has at most."""
    read: Callable[[Path | None], Iterable[Record]]


class HeldOut(msgspec.Struct, frozen=True):
    """One line of a held-out file."""

    instruction: str
    reference: str
    template: str
    metric: str


def build(source: Source, text: str, template: str, *, count: int, path: Path | None) -> list[HeldOut]:
    """Return at most `count` items, in the order of a hash of their record; each instruction once.

    The hash is of the record and not of the instruction, so another text takes the same records.

    Raises: TemplateError where the text has a slot that the source does not fill, MissingError where the source
    is not there.
    """
    names = slots(text)
    items: dict[str, HeldOut] = {}
    for record in sorted(source.read(path), key=lambda record: hash_id(*record.values.values())):
        instruction = fill(text, record.values)
        items.setdefault(instruction, HeldOut(instruction, record.reference(names), template, source.metric))
    return list(items.values())[:count]


def slots(text: str) -> list[str]:
    """Return the names of a template text's slots, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def fill(text: str, values: dict[str, str]) -> str:
    """Paste values into a template text's slots.

    Raises: TemplateError where a slot has no value.
    """
    pieces = []
    for literal, name, _, _ in string.Formatter().parse(text):
        if name is not None and name not in values:
            raise TemplateError(f"this source does not fill {{{name}}}, only {', '.join(values)}; change the text")
        pieces += [literal, values[name] if name is not None else ""]
    return "".join(pieces)

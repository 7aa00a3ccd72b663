"""What a template, or a prompt of a file, says of the form of its answers, checked before anything is asked.

The teacher is made to write so, token by token; the filter's `format` rule, in contrast, only looks at what it wrote.
Promises that a schema is a schema, a pattern a pattern and a choice a list of texts that differ. Knows no engine.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine.decode import UNREADABLE
from engine.errors import ConfigError
from engine.rows import Constraint

KEYS = ("json_schema", "regex", "choice")


def constraint_of(entry: Mapping[str, Any], *, where: str, folder: Path) -> Constraint | None:
    """Return the constraint that an entry's keys describe, or None where it has none of them.

    `json_schema` is an object, or the path of a file that holds one, taken from `folder`.

    Raises: ConfigError, which begins with `where`.
    """
    return Constraints(folder).of(entry, where=where)


class Constraints:
    """Makes the constraints of many entries, and reads a schema's file once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, str] = {}
        """Texts of the schemas that were found good, by the names of their files."""

    def digests(self) -> dict[str, str]:
        """Return the xxh3-128 of each schema that is in a file, by the file's name; its layout does not count."""
        return {name: xxhash.xxh3_128_hexdigest(text.encode()) for name, text in self._files.items()}

    def of(self, entry: Mapping[str, Any], *, where: str, checked: bool = False) -> Constraint | None:
        """Return an entry's constraint, as `constraint_of` does; `checked`: it has been made before."""
        given = {key: entry[key] for key in KEYS if entry.get(key) is not None}
        if not given:
            return None
        if len(given) > 1:
            raise ConfigError(f"{where}: {' and '.join(given)} exclude each other; keep one")
        key, value = next(iter(given.items()))
        if key == "json_schema":
            return Constraint(json_schema=self._schema(value, where, checked))
        return Constraint(regex=_regex(value, where)) if key == "regex" else Constraint(choice=_choice(value, where))

    def _schema(self, value: Any, where: str, checked: bool) -> str:
        if isinstance(value, str):
            if value not in self._files:
                self._files[value] = _text(_loaded(self._folder / value, where), where)
            return self._files[value]
        return msgspec.json.encode(value).decode() if checked else _text(value, where)


def schema_file(entry: Mapping[str, Any]) -> str | None:
    """Return the name of the file that an entry's schema is in, if it is in one."""
    value = entry.get("json_schema")
    return value if isinstance(value, str) else None


def _loaded(path: Path, where: str) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError:
        raise ConfigError(f"{where}: json_schema: {path} is not there; give the path of a JSON schema") from None
    except UNREADABLE as error:
        raise ConfigError(f"{where}: json_schema: {path} is not JSON ({error})") from None


def _text(schema: Any, where: str) -> str:
    """Return a schema as text when it was found good."""
    if not isinstance(schema, dict):
        raise ConfigError(f"{where}: json_schema must be an object, or the path of a file that holds one")
    flaw = _flaw(schema)
    if flaw:
        raise ConfigError(f"{where}: json_schema is no JSON schema: {flaw}")
    return msgspec.json.encode(schema).decode()


def _flaw(schema: dict[str, Any]) -> str:
    """Return what is wrong with a schema; where jsonschema is not installed the teacher's engine will say it."""
    try:
        library = importlib.import_module("jsonschema")
    except ModuleNotFoundError:
        return ""
    try:
        library.validators.validator_for(schema).check_schema(schema)
    except library.exceptions.SchemaError as error:
        return f"{error.message[:200]} at {error.json_path}"
    return ""


def _regex(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: regex must be a regular expression")
    try:
        re.compile(value)
    except re.error as error:
        raise ConfigError(f"{where}: regex is no regular expression ({error})") from None
    return value


def _choice(value: Any, where: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts) or len(set(texts)) < len(texts):
        raise ConfigError(f"{where}: choice must be a list of texts, none empty and none twice")
    return tuple(texts)

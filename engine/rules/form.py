"""Format guard: the output is JSON, meets a JSON schema, or matches a regular expression.

It can decide early in one case: an output that does not begin as JSON does, like "Sure, here it is:", is none whatever
follows. It stays silent where only some templates are judged, since an unfinished output does not say its template.
What has begun as JSON may become a value, and what does not match yet may match.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine import rule_settings as settings
from engine.decode import UNREADABLE
from engine.errors import ConfigError, MissingError
from engine.rules import Draft

_BEGINS = frozenset('{["-0123456789tfn')
"""First characters of a JSON value."""
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\n(.*)\n```\s*\Z", re.DOTALL)


class FormatRule:
    """Rejects an output of another form."""

    def __init__(self, chosen: settings.Format) -> None:
        if not (chosen.json or chosen.schema or chosen.regex):
            raise ConfigError("filter.rules: format asks for nothing; set json, schema or regex")
        self._templates = frozenset(chosen.templates)
        self._fence = chosen.fence
        self._json = chosen.json
        self._schema: Any = _schema(Path(chosen.schema).expanduser()) if chosen.schema else None
        try:
            self._regex = re.compile(chosen.regex) if chosen.regex else None
        except re.error as error:
            raise ConfigError(f"filter.rules: format.regex is no regular expression ({error})") from None

    def feed(self, partial: str) -> str | None:
        if self._templates or not (self._json or self._schema):
            return None
        begin = partial.lstrip()[:1]
        if not begin or begin in _BEGINS or (self._fence and begin == "`"):
            return None
        return f"is not JSON: it begins with {begin!r}"

    def finish(self, draft: Draft) -> str | None:
        if self._templates and draft.template not in self._templates:
            return None
        if self._regex and not self._regex.fullmatch(draft.output):
            return "does not match the regular expression"
        return self._judge_json(draft.output) if self._json or self._schema else None

    def _judge_json(self, output: str) -> str | None:
        fenced = _FENCE.match(output) if self._fence else None
        try:
            value = msgspec.json.decode(fenced.group(1) if fenced else output)
        except (*UNREADABLE, UnicodeEncodeError) as error:
            return f"is not JSON: {error}"
        if self._schema is None:
            return None
        flaw = next(iter(self._schema.iter_errors(value)), None)
        return f"breaks the schema at {flaw.json_path}: {flaw.message[:200]}" if flaw else None


def digest(file: str) -> str:
    """Return the xxh3-128 of a schema; its layout does not count."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(_decoded(Path(file).expanduser())))


def _schema(path: Path) -> Any:
    try:
        jsonschema: Any = importlib.import_module("jsonschema")
    except ImportError:
        raise MissingError("filter.rules: format.schema needs jsonschema; pip install jsonschema") from None
    try:
        schema = _decoded(path)
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except (RecursionError, jsonschema.SchemaError) as error:
        raise ConfigError(f"filter.rules: format.schema: {path} is no JSON schema ({error})") from None
    return kind(schema)


def _decoded(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"filter.rules: format.schema: {path} is not there") from None
    except UNREADABLE as error:
        raise ConfigError(f"filter.rules: format.schema: {path} is no JSON schema ({error})") from None

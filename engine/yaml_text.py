"""Plain settings as YAML, for the consumers' configuration files and the dataset card.

Promises text that YAML 1.1 and 1.2 readers alike read back as the same values: a word that a reader would take for a
number, a truth value, a date or nothing is quoted, and so is every text that is not a plain word. Writes only, and
only mappings, lists and scalars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/-]*(?: [A-Za-z0-9_.+/()-]+)*")
"""Text that no reader takes for anything else, unless it is one of the words below."""
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What JSON leaves as it is and YAML does not allow, or folds as a line end."""


def to_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML in block style, with its keys in their order.

    Raises: ValueError where it holds a float that is not a number.
    """
    return "".join(f"{line}\n" for line in _block(value))


def _block(value: Any) -> Iterator[str]:
    """Yield the lines of a mapping or list that is not empty."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entry(f"{_scalar(key)}:", item)
    else:
        for item in value:
            yield from _entry("-", item)


def _entry(head: str, item: Any) -> Iterator[str]:
    if not isinstance(item, Mapping | list | tuple) or not item:
        yield f"{head} {_scalar(item)}"
        return
    lines = [f"  {line}" for line in _block(item)]
    if head == "-":
        lines[0] = "- " + lines[0].removeprefix("  ")
    else:
        yield head
    yield from lines


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    text = json.dumps(value, allow_nan=False)
    # YAML 1.1 takes 1e-05 for text: a float has a point.
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.casefold() not in _WORDS:
        return value
    return _NOT_PRINTABLE.sub(_escape, json.dumps(value, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"

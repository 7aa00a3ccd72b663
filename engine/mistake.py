"""What is wrong with a mapping that a person wrote, said with the path of its key and what could stand there.

Knows the types that msgspec checks against, and the wording of its messages; nothing of files.
"""

from __future__ import annotations

import difflib
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec


def explain(message: str, kind: Any) -> str:
    """Turn msgspec's message about a mapping that is not a `kind` into a sentence with a dotted key.

    An unknown key comes with the nearest known one, a word that is none of the known ones with those.
    """
    where = re.search(r" - at `\$\.?(.*?)`$", message)
    path = where.group(1) if where else ""
    text = message[: where.start()] if where else message
    unknown = re.search(r"unknown field `(.*?)`", text)
    if unknown:
        key = unknown.group(1)
        return f"unknown key {f'{path}.{key}' if path else key}; {_hint(key, _keys(kind, path))}"
    word = re.fullmatch(r"Invalid (?:enum )?value '(.*)'", text)
    if word:
        return f"{path} = {word.group(1)!r} is not known; {_hint(word.group(1), _words(kind, path))}"
    return f"{path}: {text}" if path else text


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"


def _keys(kind: Any, path: str) -> list[str]:
    """Return the keys that may stand at a path."""
    found = [field.encode_name for one in _structs(_at(kind, path)) for field in msgspec.structs.fields(one)]
    return list(dict.fromkeys(found))


def _words(kind: Any, path: str) -> list[str]:
    """Return the words that may stand at a path: of a Literal, or the tags of a union."""
    parent, _, last = path.rpartition(".")
    tags = [one for one in _structs(_at(kind, parent)) if one.__struct_config__.tag_field == last]
    return [str(one.__struct_config__.tag) for one in tags] or [
        word for one in _parts(_at(kind, path)) if get_origin(one) is Literal for word in get_args(one)
    ]


def _at(kind: Any, path: str) -> list[Any]:
    """Return the types that may stand at a path such as `filter.rules[0].use`."""
    kinds = [kind]
    for step in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        if step.startswith("["):
            kinds = [inner for one in _parts(kinds) for inner in _items(one)]
        else:
            fields = [field for one in _structs(kinds) for field in msgspec.structs.fields(one)]
            kinds = [field.type for field in fields if field.encode_name == step]
    return kinds


def _items(kind: Any) -> tuple[Any, ...]:
    """Return the types of what a list, tuple or mapping holds."""
    arguments = tuple(one for one in get_args(kind) if one is not Ellipsis)
    return arguments[1:] if get_origin(kind) is dict else arguments


def _structs(kinds: list[Any]) -> list[Any]:
    return [one for one in _parts(kinds) if isinstance(one, type) and issubclass(one, msgspec.Struct)]


def _parts(kinds: list[Any]) -> list[Any]:
    """Return types without the unions and annotations around them."""
    found: list[Any] = []
    for kind in kinds:
        if get_origin(kind) in (Union, types.UnionType):
            found += _parts(list(get_args(kind)))
        elif hasattr(kind, "__metadata__"):
            found += _parts([kind.__origin__])
        else:
            found.append(kind)
    return found

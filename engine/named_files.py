"""Files and folders that settings name: they count by what they say, so that a changed one is a changed setting.

A setting's type says that it names one, and who reads it: `Annotated[str, names_file("engine.phrases:list_digest")]`.
That is all there is to declare. Knows nothing of what the files hold, and imports who reads one when it is named.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Meta, inspect

_READER = "reader"


def names_file(reader: str) -> Meta:
    """Return what a setting that names a file is annotated with.

    `reader` is the import path, `module:function`, of what returns the xxh3-128 of what a file of this name says.
    """
    return Meta(extra={_READER: reader})


def digests(section: msgspec.Struct, where: str) -> dict[str, str]:
    """Return the hash of each file that a section's settings name, by a key with the setting and the file's name.

    Raises: any PotstillError of who reads a file that is not there, or not good.
    """
    return {file_key(key, name): _digest(reader, name) for key, name, reader in _named(section, where)}


def file_key(setting: str, name: str) -> str:
    """Return the key of a file: `filter.phrase_files[refusals.txt]`."""
    return f"{setting}[{name}]"


def split_key(key: str) -> tuple[str, str]:
    """Return the setting and the file's name of a key; no name where it is that of a setting."""
    setting, _, name = key.partition("[")
    return setting, name.removesuffix("]")


def files_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the files' hashes of a fingerprint."""
    return {key: value for key, value in fingerprint.items() if split_key(key)[1]}


def _named(section: msgspec.Struct, where: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, name and reader of every file; an empty name is none."""
    kind = inspect.type_info(type(section))
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        value, key, reader = getattr(section, field.name), f"{where}.{field.name}", _reader(field.type)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, msgspec.Struct):
                yield from _named(one, f"{key}.{one.__struct_config__.tag}")
            elif reader and one:
                yield key, one, reader


def _reader(kind: inspect.Type) -> str | None:
    if isinstance(kind, inspect.VarTupleType):
        kind = kind.item_type
    return (kind.extra or {}).get(_READER) if isinstance(kind, inspect.Metadata) else None


def _digest(reader: str, name: str) -> str:
    module, _, function = reader.partition(":")
    read: Callable[[str], str] = getattr(importlib.import_module(module), function)
    return read(name)

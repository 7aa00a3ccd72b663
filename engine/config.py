"""One file configures every room: its sections (engine/sections.py), loaded from TOML with `--set` overrides.

Promises that an unknown key is refused with its path and the nearest known key, that bounds are checked before
any work, and that relative paths are taken from the folder of the configuration file. Imports nothing heavy.
"""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from engine import presets
from engine.errors import ConfigError, MissingError
from engine.mistake import explain
from engine.sections import (
    RECIPE_PHRASES,
    Echo,
    Eval,
    Filter,
    Loop,
    OnPolicy,
    Output,
    Prompts,
    Sampling,
    Section,
    Student,
    Teacher,
    Train,
)

__all__ = [
    "RECIPE_PHRASES",
    "Config",
    "Echo",
    "Eval",
    "Filter",
    "Loop",
    "OnPolicy",
    "Output",
    "Prompts",
    "Sampling",
    "Section",
    "Student",
    "Teacher",
    "Train",
    "changed_keys",
    "dump",
    "flatten",
    "from_mapping",
    "load",
]


class Config(Section, frozen=True):
    """The whole file."""

    teacher: Teacher = Teacher()
    prompts: Prompts = Prompts()
    sampling: Sampling = Sampling()
    filter: Filter = Filter()
    output: Output = Output()
    student: Student = Student()
    train: Train = Train()
    eval: Eval = Eval()


PATH_KEYS = (
    ("prompts", "templates"),
    ("prompts", "file"),
    ("eval", "items"),
    ("teacher", "adapter"),
)
"""Keys that hold a path, taken from the folder of the configuration file (with `--set`, from the current one)."""
MODEL_KEYS = (("teacher", "model"), ("student", "model"))
"""Keys that hold a path only if they look like one (`./x`, `/x`, `../x`); else a hub id or a package."""


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply `section.key=value` overrides.

    Raises: MissingError where the file is not there, ConfigError where a key or value is wrong.
    """
    data: dict[str, Any] = {}
    if path is not None:
        data = _read(path)
        _absolute(data, path.parent)
    for override in overrides:
        _apply(data, override)
    _absolute(data, Path.cwd())
    return from_mapping(data, where=str(path) if path else "--set")


def from_mapping(data: dict[str, Any], *, where: str) -> Config:
    """Check a nested mapping and return it as a Config, with the preset that it names beneath.

    Raises: ConfigError with the key's path and, for an unknown key, the nearest known one.
    """
    try:
        return msgspec.convert(presets.under(data, where=where), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(str(error), Config)}") from None


def dump(config: Config) -> bytes:
    """Return the resolved configuration as TOML; keys that are None are left out, since TOML has no null."""
    return msgspec.toml.encode(_without_none(msgspec.to_builtins(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted key (`filter.max_chars`)."""
    flat: dict[str, Any] = {}
    for section, values in msgspec.to_builtins(config).items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = value
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows put a mark of the byte order before the text.
        return tomllib.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8).decode())
    except FileNotFoundError:
        raise MissingError(f"{path}: no such configuration file; give the path of a TOML file") from None
    except IsADirectoryError:
        raise MissingError(f"{path} is a folder; give the path of a TOML file") from None
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _absolute(data: dict[str, Any], folder: Path) -> None:
    for section, key in PATH_KEYS + MODEL_KEYS:
        values = data.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if not isinstance(value, str) or not value or Path(value).is_absolute():
            continue
        if "\0" in value:
            raise ConfigError(f"{section}.{key}: {value!r} is no path; take the zero byte out")
        if (section, key) in PATH_KEYS or value.startswith(("./", "../")):
            cast(dict[str, Any], values)[key] = str((folder / value).resolve())


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2:
        raise ConfigError(f"--set {override}: write it as section.key=value, for example --set filter.max_chars=1200")
    target = data
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
    target[parts[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    """Read a value as TOML does, and as a plain string where TOML does not."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def changed_keys(before: dict[str, Any], after: dict[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    """Yield (dotted key, before, after) for every setting that differs."""
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)

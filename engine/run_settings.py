"""The settings that decide which rows a run has, and that they are those which it was begun with.

A template or prompt file, a schema that it names, and a file that a setting of the filter names, counts by its content.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.config import Config
from engine.errors import ConfigError
from engine.named_files import digests, files_of
from engine.prompts import Source
from engine.shards import Manifest

SPEED_KEYS = frozenset(
    {
        "teacher.max_num_seqs",
        "teacher.gpu_memory_utilization",
        "teacher.tensor_parallel_size",
        "teacher.replicas",
        "teacher.mps",
        "teacher.engine_args",
        "teacher.base_url",
        "teacher.api_key_env",
        "teacher.requests_per_s",
        "teacher.max_in_flight",
        "teacher.retries",
        "teacher.timeout_s",
        "teacher.patience_s",
        "teacher.start_timeout_s",
        "prompts.templates",
        "prompts.file",
        "filter.early",
        "output.shard_bytes",
        "output.candidates",
    }
)
"""Settings that decide how fast rows come, where they lie and how far a run goes, not which rows come; a run may go on
with others."""
SPEED_FACTS = frozenset({"replicas", "replicas_because", "gpus", "mps"})
"""What is noted of a teacher and decides how fast it answers, not what."""
SAME_MODEL = ("model_hash", "adapter_hash", "chat_template")
"""What is noted of a teacher and must not change in a run: hashes of what the settings name by a path or an id."""
GROWING = ("prompts.count", "output.accepted")
"""Settings that say how many rows: a run may be given more, since its rows are the first ones of a larger run."""


def fingerprint(settings: Config, source: Source) -> dict[str, Any]:
    """Return every setting that decides which rows come out, under its dotted key."""
    flat = configuration.flatten(settings)
    sections = ("teacher.", "prompts.", "sampling.", "filter.", "output.")
    chosen = {key: value for key, value in flat.items() if key.startswith(sections) and key not in SPEED_KEYS}
    if settings.teacher.backend == "echo":
        chosen["teacher.echo"] = {
            key: value for key, value in chosen["teacher.echo"].items() if key not in ("tokens_per_s", "max_num_seqs")
        }
    else:
        del chosen["teacher.echo"]
    chosen |= {"prompts.content": source.fingerprint, **source.schemas}
    return {key: value for key, value in chosen.items() if value is not None}


def begun_with(settings: Config, source: Source) -> dict[str, Any]:
    """Return what a run's manifest says of its settings: these, and hashes of the files that the filter's name."""
    return fingerprint(settings, source) | digests(settings.filter, "filter")


def check_settings(
    folder: Path, manifest: Manifest, settings: Config, source: Source, *, do: str = "choose another --out"
) -> None:
    """Check that a run's settings are those that it was begun with, but for those that may change.

    `do` is what to do where they are not, besides putting them back.

    Raises: ConfigError naming the key, the old and the new value.
    """
    now = _plain(begun_with(settings, source))
    # A setting that came with a later version had its default's effect before.
    defaults = _plain(configuration.flatten(Config()))
    before = {key: value for key, value in defaults.items() if key in now} | manifest.fingerprint
    refuse_changed(folder, before, now, but_for=GROWING, do=do)


def changed_teacher(folder: Path, before: dict[str, str], now: dict[str, str]) -> str | None:
    """Compare the teacher of a run's part before with that of the next one; return a sentence if versions differ.

    Raises: ConfigError where it is another model under the same name.
    """
    for key in SAME_MODEL:
        if before.get(key) != now.get(key) and before.get(key):
            raise ConfigError(
                f"{folder} was begun with another teacher: its {key} was {before[key]}, and is {now.get(key)} now; put "
                "the model back, or choose another --out"
            )
    keys = sorted((before.keys() | now.keys()) - SPEED_FACTS - {*SAME_MODEL, "model", "adapter", "prompt_form"})
    changes = [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    if not changes:
        return None
    return f"{folder}: rows from here on may be others than before would have come ({', '.join(changes)})"


def refuse_changed(
    folder: Path,
    before: dict[str, Any],
    now: dict[str, Any],
    *,
    but_for: Collection[str] = (),
    do: str = "choose another --out",
) -> None:
    """Compare what a folder was begun with and what is asked for now.

    Raises: ConfigError naming the key, the old and the new value.
    """
    # An older version recorded no hashes, and nobody knows what the files said.
    for key, old, new in configuration.changed_keys(files_of(now) | before, now):
        if key == "prompts.content":
            raise ConfigError(
                f"{folder} was begun with other prompts than prompts.templates or prompts.file names now "
                f"(prompts.content); put them back, or {do}"
            )
        if key not in but_for:
            raise ConfigError(f"{folder} was begun with {key} = {old!r}, not {new!r}; put it back, or {do}")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON, so that they compare with those of a manifest."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
    return found

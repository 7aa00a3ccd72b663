"""Roles: whom a training makes, the student out of a teacher's rows, or a teacher out of gold rows.

A teacher is trained exactly as a student is, from `teacher.model`, into folders of its own. Promises that sentences
about it speak of the teacher. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import xxhash

from engine.config import Config, Student
from engine.errors import ConfigError, MissingError, PotstillError
from engine.models import resolve_model
from engine.shards import Manifest, Shard, read_manifest

PACKED = (".gz", ".zst", ".parquet")


class Role(msgspec.Struct, frozen=True):
    """One of the two."""

    name: str
    """Also the folder of the weights."""
    records: str
    """Folder of done.json, metrics.jsonl and the checkpoints."""


STUDENT = Role("student", "train")
TEACHER = Role("teacher", "train-teacher")
ROLES = {role.name: role for role in (STUDENT, TEACHER)}


def in_role(config: Config, role: Role) -> Config:
    """Return the configuration of a training that makes this role, with the start model as `student.model`.

    Raises: ConfigError where a teacher has no weights to train, MissingError where they are not there.
    """
    if role == STUDENT:
        return config
    if config.teacher.backend != "vllm":
        raise ConfigError(
            f"teacher.backend = {config.teacher.backend}: there are no weights to train; "
            "set it to vllm and teacher.model to a folder or a Hugging Face id"
        )
    resolve_model(config.teacher.model, key="teacher.model")
    # The other methods are for a student: they need a teacher.
    train = msgspec.structs.replace(config.train, method="sft")
    return msgspec.structs.replace(config, student=Student(model=config.teacher.model), train=train)


@contextmanager
def speaking_of(role: Role) -> Iterator[None]:
    """Let a failure of a teacher's training speak of the teacher."""
    try:
        yield
    except PotstillError as error:
        if role == STUDENT:
            raise
        text = str(error).replace("student.model", "teacher.model").replace("the student", "the teacher")
        raise type(error)(text) from error


def open_rows(data: Path) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a run, or of a JSONL file as if it were the one shard of a run.

    Raises: MissingError where there is neither.
    """
    if data.is_dir():
        return data, read_manifest(data)
    if not data.is_file() or data.suffix in PACKED:
        raise MissingError(f"{data} is neither a run nor a plain JSONL file; give one of these")
    digest = xxhash.xxh3_128()
    size = rows = 0
    with data.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            rows += chunk.count(b"\n")
    shard = Shard(file=data.name, kind="kept", rows=rows, bytes=size, xxh3=digest.hexdigest())
    return data.parent, Manifest(shards=[shard])

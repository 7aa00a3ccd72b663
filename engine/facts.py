"""Facts about a run that leave with its rows: who wrote them, who learns them, under which settings.

Promises that nothing told to others names a folder of this machine, except the student in a training configuration,
which must be found. Reads a run's files and the student's; no network.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from engine.bundle import Facts, Teacher
from engine.config import Config
from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError, UsageError
from engine.models import resolve_model
from engine.named_files import file_key, split_key
from engine.shards import Manifest

UNTRAINED = "untrained"
"""Folder in a run of a student that was cut out of another model."""
NOT_TOLD = ("endpoint",)
"""What a teacher's description says that is nobody else's business."""
TYPED = ("filter.phrases", "sampling.stop")
"""Settings that are texts, whatever they look like."""


def facts_of(run: Path, manifest: Manifest, settings: Config, *, name: str | None, trains: bool) -> Facts:
    """Gather them; `trains` where a training configuration is written, which must name the student.

    Raises: UsageError where the name is no plain word, MissingError where the student is not named or not there.
    """
    return Facts(
        name=_name(run, name),
        run=run,
        teacher=_teacher(manifest),
        train=settings.train,
        template_kwargs=settings.teacher.chat_template_kwargs,
        student=_student(run, settings) if trains else "",
    )


def public(value: Any) -> Any:
    """Return a value as it may be told to others: a path in it, or in a file's key, is its last name only."""
    if isinstance(value, dict):
        told = {key: item for key, item in value.items() if key not in NOT_TOLD}
        return {_public_key(key): item if key in TYPED else public(item) for key, item in told.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and is_local(value):
        return Path(value).name
    return value


def _public_key(key: str) -> str:
    setting, name = split_key(key)
    return file_key(setting, Path(name).name) if is_local(name) else key


def is_local(spec: str) -> bool:
    """Say whether a text names a place on this machine."""
    return spec.startswith(("/", "./", "../", "~")) and "\n" not in spec


def chat_template(student: str) -> str | None:
    """Return the chat template of a model folder; None where it has none, or is not on this machine.

    Raises: DataError where its settings cannot be read.
    """
    folder = Path(student)
    if not is_local(student) or not folder.is_dir():
        return None
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    if not settings.is_file():
        return None
    try:
        found = msgspec.json.decode(settings.read_bytes(), type=_Tokenizer).chat_template
    except UNREADABLE as error:
        raise DataError(f"{settings}: not a tokenizer's settings ({error}); restore the student's folder") from None
    if isinstance(found, list):
        return next((template.template for template in found if template.name == "default"), None)
    return found


def tokenizer_sha256(student: str) -> str | None:
    """Return the checksum of a model folder's tokenizer; None where it is not on this machine."""
    path = Path(student) / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if is_local(student) and path.is_file() else None


def teacher_score(run: Path) -> tuple[float, int] | None:
    """Return the teacher's score on held-out items and how many there were, where the run was evaluated."""
    try:
        summary = msgspec.json.decode((run / "eval" / "summary.json").read_bytes(), type=_Summary)
    except (FileNotFoundError, *UNREADABLE):
        return None
    return summary.eval.teacher, summary.eval.items


class _Template(msgspec.Struct):
    name: str
    template: str


class _Tokenizer(msgspec.Struct):
    chat_template: str | list[_Template] | None = None


class _Scores(msgspec.Struct):
    teacher: float
    items: int


class _Summary(msgspec.Struct):
    eval: _Scores


def _name(run: Path, name: str | None) -> str:
    if name is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", run.resolve().name).strip("-.") or "run"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name {name}: a plain word is needed (letters, digits, dot, hyphen, underscore)")
    return name


def _teacher(manifest: Manifest) -> Teacher:
    said = manifest.fingerprint
    model = said.get("teacher.model") or manifest.teacher.get("model", "")
    temperature = said.get("sampling.temperature")
    return Teacher(
        model=public(model),
        adapter=public(said.get("teacher.adapter") or ""),
        temperature=float(temperature) if isinstance(temperature, int | float) else None,
    )


def _student(run: Path, settings: Config) -> str:
    student = settings.student
    if not student.model:
        raise MissingError(
            f"{run} names no student for the training configurations; add --set student.model=MODEL, or leave out the "
            "formats that need one"
        )
    if student.init == "prune":
        return _pruned(run)
    return resolve_model(student.model, key="student.model")


def _pruned(run: Path) -> str:
    folder = (run / UNTRAINED).resolve()
    if not (folder / "config.json").is_file():
        raise MissingError(
            f"{folder} is not there: the student is cut out of its model by potstill train; train first, or name a "
            "student with --set student.init=model --set student.model=MODEL"
        )
    return str(folder)

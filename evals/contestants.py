"""Who is compared: the teacher, the student that training left in a run, and the untrained student.

Promises that a contestant's identity follows its weights, so that a student trained anew is asked anew and an
unchanged one is not. Knows nothing of items or scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine.config import Teacher
from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError
from engine.models import resolve_model
from engine.rows import hash_id

DONE = "train/done.json"
NAMES = ("teacher", "student", "untrained")
MADE = ("student", "untrained", "sft/untrained")
"""Folders that training may make in a run; any other name that is no path is a hub id."""


class Trained(msgspec.Struct, frozen=True):
    """What the trainer leaves in `train/done.json`; paths are relative to the run, absolute, or hub ids."""

    untrained: str
    student: str
    adapter: str = ""


class Contestant(msgspec.Struct, frozen=True):
    """One model to ask, behind the settings of a teacher."""

    name: str
    teacher: Teacher
    identity: str
    """Hash of everything about the model that decides its answers."""
    parameters: int | None
    """Counted in its safetensors; None for a hub id, an endpoint, or quantised weights."""


def contestants(teacher: Teacher, run: Path) -> list[Contestant]:
    """Return teacher, student and untrained student of a run.

    The students answer on the teacher's own engine; those of a teacher behind an endpoint answer on vLLM.

    Raises: MissingError where the run has no trained student or a model is not there.
    """
    trained = read_trained(run)
    student = _replaced(teacher, _place(run, trained.student), _place(run, trained.adapter))
    untrained = _replaced(teacher, _place(run, trained.untrained), "")
    return [_contestant(name, who) for name, who in zip(NAMES, (teacher, student, untrained), strict=True)]


def read_trained(run: Path) -> Trained:
    """Read what training left in a run.

    Raises: MissingError where there is nothing, DataError where it cannot be read.
    """
    path = run / DONE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trained)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{run} has no trained student (no {DONE}); run potstill train first") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); run potstill train again") from None


def parameters(folder: Path) -> int | None:
    """Count a model folder's parameters from the headers of its safetensors; None where there are none.

    Source: the safetensors format: 8 bytes of little-endian length, then a JSON header with every tensor's shape.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or _is_quantised(folder):
        return None
    total = 0
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                total += size
    return total


def content_hash(folder: Path) -> str:
    """Return the xxh3-128 of every file in a model folder, names included."""
    digest = xxhash.xxh3_128()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"\x1f{path.name}\x1f{path.stat().st_size}\x1f".encode())
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _place(run: Path, spec: str) -> str:
    """Return a path in the run where the spec names one, else the spec.

    Raises: MissingError where it is one of the folders that training makes and is gone.
    """
    if spec and (run / spec).exists():
        return str(run / spec)
    if spec in MADE:
        raise MissingError(f"{run / spec} is not there, though {DONE} names it; run potstill train again")
    return spec


def _replaced(teacher: Teacher, model: str, adapter: str) -> Teacher:
    # The teacher's quantisation is a property of its checkpoint; vLLM reads the student's from the student's.
    backend = "echo" if teacher.backend == "echo" else "vllm"
    return msgspec.structs.replace(teacher, backend=backend, model=model, adapter=adapter, quantization=None)


def _contestant(name: str, teacher: Teacher) -> Contestant:
    if teacher.backend == "echo":
        return Contestant(name, teacher, hash_id("echo", _json(teacher.echo), teacher.model, teacher.adapter), None)
    if teacher.backend == "openai":
        return Contestant(
            name, teacher, hash_id("openai", teacher.base_url, teacher.model, _json(_manner(teacher))), None
        )
    model = resolve_model(teacher.model, key="teacher.model" if name == "teacher" else f"{DONE}: {name}")
    parts = [_weights(model), _weights(_adapter(name, teacher.adapter)), _json(_manner(teacher))]
    return Contestant(name, teacher, hash_id("vllm", *parts), parameters(Path(model)))


def _weights(spec: str) -> str:
    folder = Path(spec)
    return content_hash(folder) if spec and folder.is_dir() else spec


def _adapter(name: str, adapter: str) -> str:
    if adapter and not (Path(adapter) / "adapter_config.json").is_file():
        raise MissingError(f"{name}: {adapter} is not a LoRA adapter, it has no adapter_config.json; train again")
    return adapter


def _manner(teacher: Teacher) -> list[Any]:
    manner = [teacher.dtype, teacher.quantization, teacher.chat_template_kwargs, teacher.engine_args]
    return [*manner, teacher.reasoning_end] if teacher.reasoning_end else manner


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _is_quantised(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and b'"quantization_config"' in config.read_bytes()

"""The nouns of an export: Sample, Facts, Exporter, and the sink that most exporters share.

A sample is one kept row as it leaves: what the student sees, never the teacher's system prompt or few-shot turns. An
exporter is one file in engine/exports. Knows nothing of runs, and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from engine.config import Train
from engine.rows import user_turn
from engine.shards import disk

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
DATA = "data"
"""Folder of the canonical rows, from which every other form can be made again."""
FORMATS = "formats"
"""Folder of the rows in other words, one folder a format."""
BUFFER_BYTES = 1 << 20


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One row."""

    id: str
    group: str
    """Equal where the questions are, but for case and spaces; a group is never split."""
    template: str
    instruction: str
    input: str
    output: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int

    @property
    def question(self) -> str:
        """The user turn, as the trainer and the evaluation make it."""
        return user_turn(self.instruction, self.input)

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation in OpenAI's message form."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.output}]


class Teacher(msgspec.Struct, frozen=True):
    """Who wrote the rows, as it may be told to others: a folder of this machine is its last name only."""

    model: str = ""
    adapter: str = ""
    temperature: float | None = None


class Facts(msgspec.Struct, frozen=True):
    """What an exporter may know of the run."""

    name: str
    """What the bundle is called; a plain word."""
    run: Path
    """Where it is, for what lies beside its rows; not to be told to others."""
    teacher: Teacher
    train: Train
    template_kwargs: dict[str, Any]
    """What the student's chat template is given, in training as in serving."""
    student: str = ""
    """Folder or Hugging Face id of the model that learns; empty where no exporter writes a training configuration."""
    rows: Mapping[str, int] = {}
    """Samples of each split; known once all are written."""

    @property
    def validates(self) -> bool:
        """Say whether any row is held out."""
        return bool(self.rows.get(VALIDATION))


class Sink(Protocol):
    """Where the rows of one split go. Holds a bounded number of them."""

    def write(self, sample: Sample) -> None:
        """Take one row."""
        ...

    def close(self) -> dict[Path, int]:
        """Finish the files and return how many rows each holds; a split without rows has no file."""
        ...


class Exporter(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer. Its name is that of its module."""

    consumer: str
    """Who reads it."""
    usage: str
    """How, in one line of Markdown; commands are run in the bundle's folder."""
    open: Callable[[Path, str, Facts], Sink] | None = None
    """Opens the sink of one split in a folder; None where the consumer reads another exporter's rows."""
    folder: str = ""
    """Folder of the rows; empty takes formats/NAME."""
    needs: tuple[str, ...] = ()
    """Exporters whose rows it reads."""
    files: Callable[[Facts], dict[str, str]] | None = None
    """Path -> text of the configuration files that train the student on these rows."""
    packages: tuple[str, ...] = ()
    """Modules that must be installed."""
    publish: Callable[[Path, str], str] | None = None
    """Sends a whole bundle to a repository and returns its address."""


def training_arguments(train: Train) -> dict[str, Any]:
    """Return the settings of a training under the names of Hugging Face's TrainingArguments, which several share."""
    return {
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.scheduler,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "seed": train.seed,
        "bf16": train.dtype in ("auto", "bfloat16"),
        "fp16": train.dtype == "float16",
        "logging_steps": 10,
        "report_to": "none",
    }


def jsonl(row: Callable[[Sample, Facts], dict[str, Any]]) -> Callable[[Path, str, Facts], Sink]:
    """Return what opens `SPLIT.jsonl`, one line a sample as `row` words it."""

    def opened(folder: Path, split: str, facts: Facts) -> Sink:
        return _JsonLines(folder / f"{split}.jsonl", row, facts)

    return opened


class _JsonLines:
    """One JSONL file, in UTF-8."""

    def __init__(self, path: Path, row: Callable[[Sample, Facts], dict[str, Any]], facts: Facts) -> None:
        self._path = path
        self._row = row
        self._facts = facts
        self._file: IO[bytes] | None = None
        self._rows = 0
        self._encode = msgspec.json.Encoder().encode

    def write(self, sample: Sample) -> None:
        line = self._encode(self._row(sample, self._facts)) + b"\n"
        with disk(self._path):
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("wb", buffering=BUFFER_BYTES)
            self._file.write(line)
        self._rows += 1

    def close(self) -> dict[Path, int]:
        if self._file is None:
            return {}
        with disk(self._path):
            self._file.close()
        return {self._path: self._rows}

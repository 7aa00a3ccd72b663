"""The student of a finished run: where its weights are, and what it must be asked with.

Promises that every form of the student starts from the same three things: the 16-bit model that the configuration
names (never a quantised copy that training may have used), the adapter if there is one, and the tokenizer and chat
template that were trained with. Knows nothing of forms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config, Teacher, load
from engine.errors import DataError, MissingError, UsageError
from engine.models import resolve_model
from engine.vllm_settings import LORA_RANKS
from trainer.done import DONE, FOLDER, MADE, Done, read_done

NAME = "distilled"
"""What a server calls the student."""
WANTED = {"modules_to_save": None, "use_dora": False, "bias": "none"}
"""What vLLM can serve of an adapter's settings."""


class Student(msgspec.Struct, frozen=True):
    """A finished student."""

    run: Path
    done: Done
    config: Config
    """The settings that it was trained with."""
    model: str
    """Folder or Hugging Face id: the whole student, or what its adapter goes on."""
    adapter: Path | None
    tokenizer: Path
    """Folder with tokenizer and chat template."""

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template is called with, in training and ever after."""
        return self.config.teacher.chat_template_kwargs

    @property
    def data(self) -> Path:
        """Run or file whose rows it was trained on."""
        return self.run / self.done.data

    def asked_as(self, model: str, adapter: str = "") -> Teacher:
        """Return settings to ask a model of this student through a Backend, on vLLM."""
        return msgspec.structs.replace(
            self.config.teacher, backend="vllm", model=model, adapter=adapter, quantization=None, replicas=1, mps=False
        )


def read_student(run: Path, overrides: list[str] | None = None) -> Student:
    """Read what training left in a result folder.

    Raises: MissingError where there is no student or its model is gone, DataError where a file cannot be read.
    """
    done = read_done(run)
    if done is None:
        raise MissingError(f"{run} has no trained student (no {FOLDER}/{DONE}); run potstill train first")
    config = load(run / FOLDER / "config.toml", overrides or [])
    for spec in (done.adapter or done.student, done.untrained):
        if spec in MADE and not (run / spec).is_dir():
            raise MissingError(f"{run / spec} is not there, though {FOLDER}/{DONE} names it; run potstill train again")
    adapter = (run / done.adapter).resolve() if done.adapter else None
    model = _place(run, done.student)
    return Student(run, done, config, model, adapter, adapter or Path(model))


def _place(run: Path, spec: str) -> str:
    """Return the folder in the run where the spec names one, else the model that it names."""
    if (run / spec).is_dir() and spec in MADE:
        return str((run / spec).resolve())
    return resolve_model(spec, key=f"{FOLDER}/{DONE}: student")


def adapter_rank(adapter: Path) -> int:
    """Return the smallest rank that vLLM has kernels for and that holds the adapter.

    Raises: DataError where it cannot be read, UsageError where vLLM cannot serve such an adapter.
    """
    path = adapter / "adapter_config.json"
    try:
        settings = json.loads(path.read_bytes())
        rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not an adapter's settings ({error}); run potstill train again") from None
    for key, wanted in WANTED.items():
        if (settings.get(key) or wanted) != wanted:
            raise UsageError(f"{path}: vLLM serves no adapter with {key} = {settings[key]!r}; export it as merged")
    if rank > LORA_RANKS[-1]:
        raise UsageError(f"{path}: rank {rank}, and vLLM serves at most {LORA_RANKS[-1]}; export it as merged")
    return next(size for size in LORA_RANKS if size >= rank)

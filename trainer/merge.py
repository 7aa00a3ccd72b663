"""Merge: the student as one 16-bit model, its adapter added into the weights of the model that it was trained on.

Promises that the sum is made in float32 and rounded once, onto the original model and never onto a 4-bit copy of it,
and that a folder written here has tokenizer, chat template and generation settings. Runs on a CPU, without Unsloth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import UsageError
from trainer.libraries import load_failure
from trainer.student import Student


def load_merged(student: Student) -> Any:
    """Return the whole student in a 16-bit number format: its model's own where that has 16 bits, else bfloat16.

    Raises: UsageError where its model is quantised, MissingError where it does not load.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with load_failure("student.model", student.model):
        settings = AutoConfig.from_pretrained(student.model)
        if getattr(settings, "quantization_config", None):
            raise UsageError(
                f"student.model: {student.model} is quantised, and a sum onto its rounded weights is another student; "
                "train on the 16-bit model, or export the adapter"
            )
        model = AutoModelForCausalLM.from_pretrained(student.model, dtype=torch.float32)
    if student.adapter is not None:
        model = _with_adapter(model, student.adapter)
    kept = settings.dtype if settings.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    return model.to(kept)


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    with load_failure("adapter", str(adapter)):
        return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)


def save_model(model: Any, student: Student, folder: Path) -> None:
    """Write weights as safetensors, generation settings, tokenizer and chat template."""
    model.save_pretrained(folder)
    save_tokenizer(student, folder)


def save_tokenizer(student: Student, folder: Path) -> None:
    """Write the tokenizer and the chat template that the student was trained with."""
    from transformers import AutoTokenizer

    with load_failure("tokenizer", str(student.tokenizer)):
        AutoTokenizer.from_pretrained(student.tokenizer).save_pretrained(folder)

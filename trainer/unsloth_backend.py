"""The GPU backend: Unsloth's kernels under the same training arguments. The only file that says unsloth.

Unsloth patches transformers, PEFT and TRL when it is imported, so `patch` comes before any of them.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from typing import Any

from engine.config import Train
from engine.models import cache_folder
from trainer.libraries import load_failure
from trainer.plan import Plan


def patch() -> None:
    """Import Unsloth, which patches the other libraries.

    Left alone, it reports the machine to its makers and writes generated code into the current folder.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled_cache"))
    with redirect_stdout(sys.stderr):
        import unsloth  # noqa: F401

        # isort: split
        import trl  # noqa: F401


def load(model: str, train: Train, plan: Plan, arguments: dict[str, Any]) -> Any:
    """Load a student to train, with the same adapter and number formats as the plain backend.

    Length and checkpointing come from the training arguments: Unsloth wants them here too, and equal.

    Raises: MissingError where it does not load.
    """
    import torch
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if arguments["gradient_checkpointing"] else False
    with load_failure("student.model", model):
        student, _ = FastLanguageModel.from_pretrained(
            model_name=model,
            max_seq_length=arguments["max_length"],
            dtype=getattr(torch, plan.dtype),
            load_in_4bit=plan.tuning == "qlora",
            load_in_16bit=plan.tuning == "lora",
            full_finetuning=plan.tuning == "full",
            # Trained weights stay float32, as in the plain backend; computing is in the plan's number format.
            float32_mixed_precision=plan.tuning == "full" or None,
            # Else a hub id is swapped for Unsloth's own upload of it.
            use_exact_model_name=True,
            use_gradient_checkpointing=checkpointing,
            random_state=train.seed,
        )
    if plan.tuning == "full":
        return student
    return FastLanguageModel.get_peft_model(
        student,
        r=train.r,
        lora_alpha=train.alpha,
        lora_dropout=train.dropout,
        target_modules=list(train.target_modules),
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=train.seed,
        use_rslora=False,
    )

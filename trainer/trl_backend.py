"""The plain backend: the model as transformers loads it, with PEFT's adapter. Runs anywhere, a CPU included."""

from __future__ import annotations

from typing import Any

from engine.config import Teacher, Train
from engine.errors import ConfigError
from engine.models import resolve_model
from trainer import ranks
from trainer.libraries import first_line, load_failure
from trainer.plan import Plan


def load(model: str, train: Train, plan: Plan, adapter: str = "") -> Any:
    """Load a student to train: what is frozen in the number format of the plan, what is trained in float32.

    With an adapter, that one is trained on instead of a new one.

    Raises: MissingError where it does not load, ConfigError where train.target_modules names no layer of it.
    """
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(train.seed)
    dtype = torch.float32 if plan.tuning == "full" else getattr(torch, plan.dtype)
    quantised = (
        {"quantization_config": _four_bits(dtype), "device_map": {"": ranks.local()}} if plan.tuning == "qlora" else {}
    )
    with load_failure("student.model", model):
        student = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **quantised)
    if plan.tuning == "full":
        return student
    return _with_trained(student, adapter) if adapter else _with_adapter(student, train)


def load_teacher(teacher: Teacher, plan: Plan) -> Any:
    """Load a teacher to learn from, its adapter merged, in the number format of the plan.

    Raises: MissingError where it does not load.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = resolve_model(teacher.model, key="teacher.model")
    with load_failure("teacher.model", model):
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, plan.dtype))
    if teacher.adapter:
        with load_failure("teacher.adapter", teacher.adapter):
            loaded = PeftModel.from_pretrained(loaded, teacher.adapter).merge_and_unload()
    return loaded.requires_grad_(False)


def _with_trained(student: Any, adapter: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(student, adapter, is_trainable=True)


def _four_bits(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _with_adapter(student: Any, train: Train) -> Any:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=train.r,
        lora_alpha=train.alpha,
        lora_dropout=train.dropout,
        target_modules=list(train.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(student, adapter)
    except ValueError as error:
        raise ConfigError(f"train.target_modules does not fit the student ({first_line(error)})") from error

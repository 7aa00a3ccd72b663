"""TRL's SFTTrainer: conversational prompt and completion, so that the loss counts the answer only.

Format: `{"prompt": [message], "completion": [message], "chat_template_kwargs"?}` a line; TRL 1.15 and 1.16.
Source: https://huggingface.co/docs/trl/dataset_formats and trl/scripts/sft.py
"""

from __future__ import annotations

from typing import Any

from engine.bundle import Exporter, Facts, Sample, jsonl, training_arguments
from engine.yaml_text import to_yaml


def _row(sample: Sample, facts: Facts) -> dict[str, Any]:
    question, answer = sample.messages()
    row: dict[str, Any] = {"prompt": [question], "completion": [answer]}
    if facts.template_kwargs:
        row["chat_template_kwargs"] = facts.template_kwargs
    return row


def _files(facts: Facts) -> dict[str, str]:
    train = facts.train
    settings = {
        "model_name_or_path": facts.student,
        "dataset_name": "formats/trl",
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "eval_strategy": "epoch" if facts.validates else "no",
        "output_dir": "trl/output",
        "completion_only_loss": True,
        "max_length": train.max_length,
        "packing": train.packing,
        **training_arguments(train),
        **_adapter(facts),
    }
    return {"trl/sft.yaml": to_yaml(settings)}


def _adapter(facts: Facts) -> dict[str, Any]:
    train = facts.train
    if train.tuning == "full":
        return {}
    return {
        "use_peft": True,
        "lora_r": train.r,
        "lora_alpha": train.alpha,
        "lora_dropout": train.dropout,
        "lora_target_modules": train.target_modules,
        "load_in_4bit": train.tuning == "qlora",
    }


EXPORTER = Exporter(
    consumer="TRL",
    usage="`trl sft --config trl/sft.yaml`",
    open=jsonl(_row),
    files=_files,
)

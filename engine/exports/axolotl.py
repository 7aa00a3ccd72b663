"""Axolotl: a configuration over the messages of the openai format, rendered with the student's own chat template.

Format: the YAML of Axolotl 0.19; `type: chat_template`, since `type: sharegpt` is gone and `type: alpaca` wraps a frame
of its own around the question.
Source: https://docs.axolotl.ai/docs/dataset-formats/conversation.html and axolotl/utils/schemas
"""

from __future__ import annotations

from typing import Any

from engine.bundle import Exporter, Facts
from engine.yaml_text import to_yaml


def _files(facts: Facts) -> dict[str, str]:
    train = facts.train
    settings = {
        "base_model": facts.student,
        **_adapter(facts),
        "chat_template": "tokenizer_default",
        **({"chat_template_kwargs": facts.template_kwargs} if facts.template_kwargs else {}),
        "datasets": [_dataset("train")],
        **({"test_datasets": [_dataset("validation")], "evals_per_epoch": 1} if facts.validates else {}),
        "val_set_size": 0.0,
        "dataset_prepared_path": "axolotl/prepared",
        "output_dir": "axolotl/output",
        "sequence_len": train.max_length,
        "sample_packing": train.packing,
        "eval_sample_packing": False,
        "num_epochs": train.epochs,
        **({"max_steps": train.max_steps} if train.max_steps else {}),
        "micro_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "optimizer": "adamw_torch_fused",
        "learning_rate": train.learning_rate,
        "lr_scheduler": train.scheduler,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "seed": train.seed,
        "bf16": {"auto": "auto", "bfloat16": True}.get(train.dtype, False),
        "fp16": train.dtype == "float16",
        "saves_per_epoch": 1,
        "logging_steps": 10,
    }
    return {"axolotl/config.yaml": to_yaml(settings)}


def _dataset(split: str) -> dict[str, Any]:
    return {
        "path": f"formats/openai/{split}.jsonl",
        "ds_type": "json",
        "split": "train",
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


def _adapter(facts: Facts) -> dict[str, Any]:
    train = facts.train
    if train.tuning == "full":
        return {}
    return {
        "adapter": train.tuning,
        "load_in_4bit": train.tuning == "qlora",
        "lora_r": train.r,
        "lora_alpha": train.alpha,
        "lora_dropout": train.dropout,
        "lora_target_modules": train.target_modules,
    }


EXPORTER = Exporter(
    consumer="Axolotl",
    usage="`axolotl train axolotl/config.yaml`",
    needs=("openai",),
    files=_files,
)

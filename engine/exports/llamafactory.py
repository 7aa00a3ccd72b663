"""LLaMA-Factory: a dataset description and a training configuration, over the messages of the openai format.

Messages, because its Alpaca reader joins instruction and input with one newline, and the student is served two. No
`template`: without one it takes the tokenizer's own, while its named ones differ from some models' in a full stop.
Format: `dataset_info.json` and `train.yaml` of LLaMA-Factory 0.9.5.
Source: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md and examples/train_lora
"""

from __future__ import annotations

import json
from typing import Any

from engine.bundle import Exporter, Facts, training_arguments
from engine.yaml_text import to_yaml


def _files(facts: Facts) -> dict[str, str]:
    return {
        "llamafactory/dataset_info.json": json.dumps(_description(facts), indent=2) + "\n",
        "llamafactory/train.yaml": to_yaml(_settings(facts)),
    }


def _description(facts: Facts) -> dict[str, Any]:
    names = {"train": facts.name, "validation": f"{facts.name}_validation"}
    return {
        name: {
            "file_name": f"../formats/openai/{split}.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
        for split, name in names.items()
        if facts.rows.get(split)
    }


def _settings(facts: Facts) -> dict[str, Any]:
    train = facts.train
    return {
        "model_name_or_path": facts.student,
        "stage": "sft",
        "do_train": True,
        **_adapter(facts),
        "dataset_dir": "llamafactory",
        "dataset": facts.name,
        **({"eval_dataset": f"{facts.name}_validation", "eval_strategy": "epoch"} if facts.validates else {}),
        **_thinking(facts),
        "cutoff_len": train.max_length,
        # Packed rows do not see each other.
        "neat_packing": train.packing,
        "output_dir": "llamafactory/output",
        **training_arguments(train),
    }


def _adapter(facts: Facts) -> dict[str, Any]:
    train = facts.train
    if train.tuning == "full":
        return {"finetuning_type": "full"}
    return {
        "finetuning_type": "lora",
        "lora_rank": train.r,
        "lora_alpha": train.alpha,
        "lora_dropout": train.dropout,
        "lora_target": ",".join(train.target_modules),
        **({"quantization_bit": 4} if train.tuning == "qlora" else {}),
    }


def _thinking(facts: Facts) -> dict[str, Any]:
    """Return the one template argument that it knows; it must be equal in training and in serving."""
    thinking = facts.template_kwargs.get("enable_thinking")
    return {"enable_thinking": thinking} if isinstance(thinking, bool) else {}


EXPORTER = Exporter(
    consumer="LLaMA-Factory",
    usage="`llamafactory-cli train llamafactory/train.yaml`",
    needs=("openai",),
    files=_files,
)

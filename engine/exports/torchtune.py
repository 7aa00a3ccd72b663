"""torchtune: a recipe configuration over the messages of the openai format.

torchtune is no longer developed. It builds models by name and has no builder for most, so the configuration is whole
only for the students below; for any other it holds the rows and the training settings, to be put into a recipe of
one's own. Its only schedule is the cosine. Format: recipes of torchtune 0.6.1; Qwen3's builders came after that
release.
Source: https://github.com/pytorch/torchtune/tree/main/recipes/configs
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.bundle import SPLITS, Exporter, Facts
from engine.yaml_text import to_yaml


class Student(msgspec.Struct, frozen=True):
    """What torchtune calls a model, and how its weights lie on the hub."""

    family: str
    builder: str
    shards: int
    model_type: str
    tokenizer: dict[str, str]


_QWEN = {"path": "student/vocab.json", "merges_file": "student/merges.txt"}
_LLAMA = {"path": "student/original/tokenizer.model"}
STUDENTS = {
    "Qwen/Qwen3-0.6B": Student("qwen3", "qwen3_0_6b_instruct", 1, "QWEN3", _QWEN),
    "Qwen/Qwen3-1.7B": Student("qwen3", "qwen3_1_7b_instruct", 2, "QWEN3", _QWEN),
    "Qwen/Qwen2.5-0.5B-Instruct": Student("qwen2_5", "qwen2_5_0_5b", 1, "QWEN2", _QWEN),
    "Qwen/Qwen2.5-1.5B-Instruct": Student("qwen2_5", "qwen2_5_1_5b_instruct", 1, "QWEN2", _QWEN),
    "Qwen/Qwen2.5-3B-Instruct": Student("qwen2_5", "qwen2_5_3b", 2, "QWEN2", _QWEN),
    "meta-llama/Llama-3.2-1B-Instruct": Student("llama3_2", "llama3_2_1b", 1, "LLAMA3_2", _LLAMA),
    "meta-llama/Llama-3.2-3B-Instruct": Student("llama3_2", "llama3_2_3b", 2, "LLAMA3_2", _LLAMA),
}
"""Source: torchtune/recipes/configs."""
WHOLE_HEAD = """\
# Run in the bundle's folder, after: tune download {student} --output-dir student
#   tune run {recipe} --config torchtune/sft.yaml
"""
PART_HEAD = """\
# torchtune has no builder for {student}: put model, tokenizer and checkpointer of your own recipe in front of this,
# and run it in the bundle's folder with tune run {recipe} --config torchtune/sft.yaml
"""


def _files(facts: Facts) -> dict[str, str]:
    student = STUDENTS.get(facts.student)
    recipe = f"{'full' if facts.train.tuning == 'full' else 'lora'}_finetune_single_device"
    head = (WHOLE_HEAD if student else PART_HEAD).format(student=facts.student, recipe=recipe)
    settings = {**(_model(facts, student) if student else {}), **_rows(facts), **_training(facts)}
    return {"torchtune/sft.yaml": head + to_yaml(settings)}


def _model(facts: Facts, student: Student) -> dict[str, Any]:
    family = f"torchtune.models.{student.family}"
    tokenizers = "torchtune.models.llama3.llama3" if student.family == "llama3_2" else f"{family}.{student.family}"
    files = (
        ["model.safetensors"]
        if student.shards == 1
        else [f"model-{number:05d}-of-{student.shards:05d}.safetensors" for number in range(1, student.shards + 1)]
    )
    return {
        "model": _builder(facts, f"{family}.", student.builder),
        "tokenizer": {
            "_component_": f"{tokenizers}_tokenizer",
            **student.tokenizer,
            "max_seq_len": facts.train.max_length,
        },
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": "student",
            "checkpoint_files": files,
            "recipe_checkpoint": None,
            "output_dir": "torchtune/output",
            "model_type": student.model_type,
        },
        "resume_from_checkpoint": False,
    }


def _builder(facts: Facts, package: str, builder: str) -> dict[str, Any]:
    train = facts.train
    if train.tuning == "full":
        return {"_component_": package + builder}
    modules = [module.replace("o_proj", "output_proj") for module in train.target_modules]
    return {
        "_component_": f"{package}lora_{builder}",
        "lora_attn_modules": [name for name in modules if name.startswith(("q_", "k_", "v_", "output_"))],
        "apply_lora_to_mlp": any(name in ("gate_proj", "up_proj", "down_proj") for name in modules),
        "lora_rank": train.r,
        "lora_alpha": train.alpha,
        "lora_dropout": train.dropout,
        "quantize_base": train.tuning == "qlora",
    }


def _rows(facts: Facts) -> dict[str, Any]:
    """Return where the rows are; releases up to 0.6.1 leave `dataset_val` alone."""
    keys = dict(zip(SPLITS, ("dataset", "dataset_val"), strict=True))
    return {
        key: {
            "_component_": "torchtune.datasets.chat_dataset",
            "source": "json",
            "data_files": f"formats/openai/{split}.jsonl",
            "split": "train",
            "conversation_column": "messages",
            "conversation_style": "openai",
            "train_on_input": False,
            "packed": facts.train.packing and split == "train",
        }
        for split, key in keys.items()
        if facts.rows.get(split)
    }


def _training(facts: Facts) -> dict[str, Any]:
    train = facts.train
    return {
        "output_dir": "torchtune/output",
        "seed": train.seed,
        "shuffle": True,
        "epochs": max(1, round(train.epochs)),
        "max_steps_per_epoch": train.max_steps,
        "batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "fused": True,
            "lr": train.learning_rate,
            "weight_decay": train.weight_decay,
        },
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": train.warmup_steps,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "clip_grad_norm": 1.0,
        "device": "cuda",
        "dtype": "fp32" if train.dtype == "float32" else "bf16",
        "compile": False,
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": "torchtune/output/logs",
        },
        "log_every_n_steps": 10,
        "log_peak_memory_stats": True,
    }


EXPORTER = Exporter(
    consumer="torchtune",
    usage="`torchtune/sft.yaml`, whose first lines give the commands",
    needs=("openai",),
    files=_files,
)

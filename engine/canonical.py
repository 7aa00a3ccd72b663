"""The canonical columns of an exported row: one table that the JSONL, the Parquet schema and the card all follow.

Knows nothing of files.
"""

from __future__ import annotations

from typing import Any

from engine.bundle import Facts, Sample

COLUMNS: dict[str, Any] = {
    "id": "string",
    "group": "string",
    "template": "string",
    "instruction": "string",
    "input": "string",
    "output": "string",
    "messages": [{"role": "string", "content": "string"}],
    "teacher": {"model": "string", "adapter": "string", "temperature": "float64"},
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "output_tokens": "int64",
}
"""Column -> type: a name that Arrow and `datasets` share, a list of one type, or a mapping of fields to types."""

MEANINGS = {
    "id": "hash of what made the row",
    "group": "equal where the questions are, but for case and spaces; never on both sides of the split",
    "template": "which template of the run asked",
    "instruction": "what to do",
    "input": "what to do it with; may be empty",
    "output": "the teacher's answer",
    "messages": "what the student sees: instruction and input joined by a blank line, then the answer",
    "teacher": "who answered, and at which temperature",
    "finish_reason": "`stop`, or `length` where the token limit cut the answer off; may be empty",
    "prompt_tokens": "in the teacher's tokens, its system prompt and examples included",
    "output_tokens": "in the teacher's tokens",
}


def canonical(sample: Sample, facts: Facts) -> dict[str, Any]:
    """Return a row under its canonical columns, in their order."""
    teacher = facts.teacher
    return {
        "id": sample.id,
        "group": sample.group,
        "template": sample.template,
        "instruction": sample.instruction,
        "input": sample.input,
        "output": sample.output,
        "messages": sample.messages(),
        "teacher": {"model": teacher.model, "adapter": teacher.adapter, "temperature": teacher.temperature},
        "finish_reason": sample.finish_reason,
        "prompt_tokens": sample.prompt_tokens,
        "output_tokens": sample.output_tokens,
    }


def features(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return columns as a dataset card declares them."""
    return [{"name": name, **_feature(kind)} for name, kind in columns.items()]


def _feature(kind: Any) -> dict[str, Any]:
    if isinstance(kind, str):
        return {"dtype": kind}
    if isinstance(kind, dict):
        return {"struct": features(kind)}
    (item,) = kind
    return {"list": features(item) if isinstance(item, dict) else item}

"""ShareGPT's conversations.

Format: `{"conversations": [{"from": "human" | "gpt", "value"}, ...]}` a line, human first, in turns.
Source: https://github.com/lm-sys/FastChat/blob/main/docs/training.md
"""

from __future__ import annotations

from typing import Any

from engine.bundle import Exporter, Facts, Sample, jsonl


def _row(sample: Sample, facts: Facts) -> dict[str, Any]:
    turns = [{"from": "human", "value": sample.question}, {"from": "gpt", "value": sample.output}]
    return {"conversations": turns}


EXPORTER = Exporter(
    consumer="FastChat, Unsloth's `standardize_sharegpt`, and whatever else reads ShareGPT",
    usage="`formats/sharegpt/train.jsonl`",
    open=jsonl(_row),
)

"""Stanford Alpaca's columns.

Format: `{"instruction", "input", "output"}` a line; `input` may be empty. Readers differ in how they join the two (one
newline, two, or Alpaca's own English frame around them): where the student must see what it is served with, take a
format with messages. Format of 2023, unchanged.
Source: https://github.com/tatsu-lab/stanford_alpaca#data-release
"""

from __future__ import annotations

from typing import Any

from engine.bundle import Exporter, Facts, Sample, jsonl


def _row(sample: Sample, facts: Facts) -> dict[str, Any]:
    return {"instruction": sample.instruction, "input": sample.input, "output": sample.output}


EXPORTER = Exporter(
    consumer="anything that reads Alpaca's columns",
    usage="`formats/alpaca/train.jsonl`; readers join instruction and input each in their own way, so serve the "
    "student as that reader does, or train on messages instead",
    open=jsonl(_row),
)

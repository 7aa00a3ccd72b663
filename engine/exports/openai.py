"""OpenAI's chat format, which Azure, Together, Fireworks, NeMo, ms-swift and EasyDistill read too.

Format: one `{"messages": [{"role", "content"}, ...]}` a line and no other key, since Together refuses a file that
matches two formats. OpenAI takes no fewer than 10 lines. Guide as of 2026.
Source: https://platform.openai.com/docs/guides/supervised-fine-tuning
"""

from __future__ import annotations

from typing import Any

from engine.bundle import Exporter, Facts, Sample, jsonl


def _row(sample: Sample, facts: Facts) -> dict[str, Any]:
    return {"messages": sample.messages()}


EXPORTER = Exporter(
    consumer="OpenAI, Azure, Together, Fireworks, NeMo, ms-swift",
    usage="upload `formats/openai/train.jsonl` (OpenAI refuses fewer than 10 rows) and `validation.jsonl`",
    open=jsonl(_row),
)

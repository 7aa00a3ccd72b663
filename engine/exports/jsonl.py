"""The canonical rows as JSON lines: what the bundle's data are where Parquet is not asked for.

Format: one JSON object a line, UTF-8; `datasets.load_dataset("json")` reads it.
Source: https://jsonlines.org
"""

from __future__ import annotations

from engine.bundle import DATA, Exporter, jsonl
from engine.canonical import canonical

EXPORTER = Exporter(
    consumer="anything that reads JSON lines",
    usage='`datasets.load_dataset("json", data_files="data/train.jsonl")`',
    open=jsonl(canonical),
    folder=DATA,
)

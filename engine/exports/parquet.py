"""Parquet files of the canonical columns.

Format: `data/SPLIT-00000-of-00002.parquet`, see engine/parquet_files.py.
Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.bundle import DATA, Exporter, Facts, Sample, Sink
from engine.canonical import COLUMNS, canonical
from engine.parquet_files import ParquetFiles


def _schema() -> Any:
    import pyarrow

    def arrow(kind: Any) -> Any:
        if isinstance(kind, dict):
            return pyarrow.struct([(name, arrow(item)) for name, item in kind.items()])
        return pyarrow.list_(arrow(kind[0])) if isinstance(kind, list) else getattr(pyarrow, kind)()

    return pyarrow.schema([(name, arrow(kind)) for name, kind in COLUMNS.items()])


def _open(folder: Path, split: str, facts: Facts) -> Sink:
    def row(sample: Sample) -> tuple[dict[str, Any], int]:
        # Question and answer stand in the messages once more.
        return canonical(sample, facts), 2 * (len(sample.instruction) + len(sample.input) + len(sample.output))

    return ParquetFiles(folder, split, _schema(), row)


EXPORTER = Exporter(
    consumer="anything that reads Parquet",
    usage="`datasets.load_dataset(FOLDER)`, where the folder is this one",
    open=_open,
    folder=DATA,
    packages=("pyarrow",),
)

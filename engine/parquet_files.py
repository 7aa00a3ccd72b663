"""Parquet files of one split, as the Hugging Face hub lays them out.

Format: `SPLIT-00000-of-00002.parquet`, zstd, row groups of a few megabytes so that a viewer reads a page and no more.
Parquet 2 as pyarrow writes it; a row group is all that is held in memory.
Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.bundle import Sample
from engine.shards import disk

GROUP_BYTES = 4_000_000
"""Of a row group, as the caller reckons its rows."""
FILE_BYTES = 256 * 2**20
"""A file is closed when it has reached this size."""


class ParquetFiles:
    """A sink; `row` makes a record of the schema of a sample, and how many bytes that about is."""

    def __init__(self, folder: Path, split: str, schema: Any, row: Callable[[Sample], tuple[dict[str, Any], int]]):
        self._folder = folder
        self._split = split
        self._schema = schema
        self._row = row
        self._group: list[dict[str, Any]] = []
        self._bytes = 0
        self._files: list[tuple[Path, int]] = []
        self._writer: Any = None
        self._rows = 0

    def write(self, sample: Sample) -> None:
        record, size = self._row(sample)
        self._group.append(record)
        self._bytes += size
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> dict[Path, int]:
        self._flush()
        self._finish()
        return {self._named(number): rows for number, (_, rows) in enumerate(self._files)}

    def _flush(self) -> None:
        if not self._group:
            return
        import pyarrow
        from pyarrow import parquet

        path = self._folder / f"{self._split}-{len(self._files):05d}.parquet"
        table = pyarrow.Table.from_pylist(self._group, schema=self._schema)
        with disk(path):
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
            self._writer.write_table(table)
            size = path.stat().st_size
        self._rows += len(self._group)
        self._group, self._bytes = [], 0
        if size >= FILE_BYTES:
            self._finish()

    def _finish(self) -> None:
        if self._writer is None:
            return
        path = self._folder / f"{self._split}-{len(self._files):05d}.parquet"
        with disk(path):
            self._writer.close()
        self._files.append((path, self._rows))
        self._writer, self._rows = None, 0

    def _named(self, number: int) -> Path:
        """Rename a file, now that it is known how many there are."""
        path, _ = self._files[number]
        final = path.with_name(f"{self._split}-{number:05d}-of-{len(self._files):05d}.parquet")
        with disk(final):
            return path.rename(final)

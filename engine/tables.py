"""Tables -> lines of JSON: Parquet, Arrow, and the folder that `Dataset.save_to_disk` writes.

Promises one line a row, in order, with every column; a value that JSON has no form for is written as text. Imports
pyarrow, only when a table is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from engine.errors import DataError, MissingError, UsageError

BATCH_ROWS = 256


def table_lines(path: Path, *, skip: int = 0) -> Iterator[list[bytes]]:
    """Yield the rows of a table as lines of JSON, without the first `skip` of them.

    Raises: MissingError without pyarrow, UsageError for a folder that holds no table, DataError for a damaged one.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingError(f"{path}: reading tables needs pyarrow; pip install pyarrow") from None
    try:
        for file in _files(path):
            for table in _batches(file):
                rows = table.num_rows
                if skip < rows:
                    yield [_line(row) for row in table.slice(skip).to_pylist()]
                skip = max(0, skip - rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a table that can be read ({error})") from error


def _files(path: Path) -> list[Path]:
    """Return a table's files; those of a `save_to_disk` folder in the order that it names."""
    if not path.is_dir():
        return [path]
    state = path / "state.json"
    if state.exists():
        return [path / file["filename"] for file in orjson.loads(state.read_bytes())["_data_files"]]
    if (path / "dataset_dict.json").exists():
        splits = orjson.loads((path / "dataset_dict.json").read_bytes())["splits"]
        raise UsageError(
            f"{path} holds several splits; give one of them: {', '.join(f'{path}/{name}' for name in splits)}"
        )
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UsageError(f"{path} is a folder without tables; give a run, a dataset saved to disk, or files")
    return files


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow

    if file.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=BATCH_ROWS)
        return
    with pyarrow.memory_map(str(file)) as source:
        try:
            batches: Any = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            opened = pyarrow.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        yield from _cut(batches)


def _cut(batches: Any) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, default=_text, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

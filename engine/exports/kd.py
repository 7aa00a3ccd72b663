"""The teacher's likeliest tokens at each place of an answer, for trainers that learn from them.

Format: `kd/SPLIT-00000-of-00001.parquet`, a row for each row of `data`, by its `id`: `token_ids` (T,), `topk_ids` and
`topk_logprobs` (T, K), `sampled_logprobs` (T,), float32, before temperature and filters. The last of the T is the token
that ended the answer, if one did. Only of a run that was generated with sampling.logprobs.
Source: https://huggingface.co/docs/datasets/loading#parquet
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.bundle import Exporter, Facts, Sample, Sink
from engine.errors import DataError
from engine.logprobs import Logprobs, read_logprobs
from engine.parquet_files import ParquetFiles

FOLDER = "kd"


def _schema() -> Any:
    import pyarrow

    ids, values = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float32())
    columns = {"token_ids": ids, "topk_ids": pyarrow.list_(ids), "topk_logprobs": pyarrow.list_(values)}
    return pyarrow.schema([("id", pyarrow.string()), *columns.items(), ("sampled_logprobs", values)])


def _open(folder: Path, split: str, facts: Facts) -> Sink:
    records = read_logprobs(facts.run)

    def row(sample: Sample) -> tuple[dict[str, Any], int]:
        # In the order of the rows, of which this split has some.
        record = next((one for one in records if one.id == sample.id), None)
        if record is None:
            raise DataError(f"{facts.run}: there are no log-probabilities of row {sample.id}; generate again")
        return _words(record), 4 * (2 * record.token_ids.size + 2 * record.topk_ids.size)

    return ParquetFiles(folder, split, _schema(), row)


def _words(record: Logprobs) -> dict[str, Any]:
    arrays = record._asdict()
    return {"id": arrays.pop("id"), **{name: array.tolist() for name, array in arrays.items()}}


EXPORTER = Exporter(
    consumer="trainers that learn from a teacher's probabilities",
    usage='`datasets.load_dataset("parquet", data_files="kd/train-*.parquet")`, joined to `data` by `id`',
    open=_open,
    folder=FOLDER,
    packages=("pyarrow",),
)

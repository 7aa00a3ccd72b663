"""One pipeline over one file in a process of its own, so that CPU seconds and peak memory are its alone.

Started by `bench.filter` as `python -m bench.pipelines NAME SOURCE FOLDER PHRASES OPTIONS`; prints one JSON line.
The pipelines do the same filter: the naive passes, Potstill's, and the obvious one in polars and in duckdb.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from bench.naive import CAP, MAX_CHARS, MIN_CHARS, naive_filter
from bench.peak import peak_bytes

Run = Callable[[], Sequence[Path]]
"""Does the work and returns the files with the kept rows, in order."""


def main(arguments: Sequence[str]) -> None:
    """Run one pipeline and print what it took."""
    name, source, folder, phrases, options = arguments
    run = PIPELINES[name](Path(source), Path(folder), tuple(msgspec.json.decode(phrases)), msgspec.json.decode(options))
    base_mb, start, before = peak_bytes() / 2**20, time.perf_counter(), _cpu_s()
    files = run()
    measured = {
        "cpu_s": round(_cpu_s() - before, 4),
        "wall_s": round(time.perf_counter() - start, 4),
        "peak_mb": round(peak_bytes() / 2**20, 1),
        "imports_mb": round(base_mb, 1),
    }
    rows, digest = _kept(files)
    print(msgspec.json.encode({**measured, "kept": rows, "kept_xxh3": digest}).decode())


def _naive(source: Path, folder: Path, phrases: tuple[str, ...], options: dict[str, Any]) -> Run:
    def run() -> Sequence[Path]:
        naive_filter(source, folder / "kept.jsonl", phrases)
        return [folder / "kept.jsonl"]

    return run


def _naive_lean(source: Path, folder: Path, phrases: tuple[str, ...], options: dict[str, Any]) -> Run:
    def run() -> Sequence[Path]:
        naive_filter(source, folder / "kept.jsonl", phrases, lean=True)
        return [folder / "kept.jsonl"]

    return run


def _potstill(source: Path, folder: Path, phrases: tuple[str, ...], options: dict[str, Any]) -> Run:
    # What the command line imports is not what is measured; nor is it for the others.
    from engine import filter_run
    from engine.config import from_mapping
    from engine.native.load import load_kernel

    compiled = load_kernel(build=False) is not None
    importlib.import_module("engine.filter_workers" if compiled else "hyperscan")
    rules = {"phrases": list(phrases), **options.get("filter", {})}
    settings = from_mapping({"filter": rules}, where="bench")

    def run() -> Sequence[Path]:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        filter_run.filter_rows([str(source)], folder, settings, workers=options.get("workers", 0))
        return sorted(folder.glob("kept-*.jsonl"))

    return run


def _polars(source: Path, folder: Path, phrases: tuple[str, ...], options: dict[str, Any]) -> Run:
    import polars

    instruction, output = polars.col("instruction"), polars.col("output")
    key = [instruction.str.strip_chars().alias("_i"), output.str.strip_chars().alias("_o")]
    words = instruction.str.extract(r"^\s*(\S+(?:\s+\S+){0,3})").str.replace_all(r"\s+", " ").fill_null("").alias("_t")

    def run() -> Sequence[Path]:
        (
            polars.read_ndjson(source)
            .with_columns(key)
            .unique(subset=["_i", "_o"], keep="first", maintain_order=True)
            .filter(output.str.len_chars().is_between(MIN_CHARS, MAX_CHARS))
            .filter(~output.str.to_lowercase().str.contains_any([phrase.lower() for phrase in phrases]))
            .with_columns(words)
            .filter(polars.int_range(polars.len()).over("_t") < CAP)
            .drop("_i", "_o", "_t")
            .write_ndjson(folder / "kept.jsonl")
        )
        return [folder / "kept.jsonl"]

    return run


def _duckdb(source: Path, folder: Path, phrases: tuple[str, ...], options: dict[str, Any]) -> Run:
    import duckdb

    database = duckdb.connect(config={"threads": 1})
    database.execute(
        "create table banned as select unnest($phrases) as phrase", {"phrases": [*map(str.lower, phrases)]}
    )
    held = " or ".join(f"contains(lower(output), {_quoted(phrase.lower())})" for phrase in phrases)
    query = f"""
        copy (
            with raw as (
                select *, row_number() over () as n
                from read_json({_quoted(str(source))}, format = 'newline_delimited')
            ),
            fresh as (
                select * from raw qualify 1 = row_number() over (
                    partition by trim(instruction, E' \\t\\n'), trim(output, E' \\t\\n') order by n
                )
            ),
            clean as (
                select * from fresh where length(output) between {MIN_CHARS} and {MAX_CHARS} and not ({held})
            ),
            capped as (
                select * from clean qualify {CAP} >= row_number() over (
                    partition by string_split_regex(trim(instruction), '\\s+')[1:4] order by n
                )
            )
            select * exclude n from capped order by n
        ) to {_quoted(str(folder / "kept.jsonl"))} (format json)
    """

    def run() -> Sequence[Path]:
        database.execute(query)
        return [folder / "kept.jsonl"]

    return run


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


PIPELINES: dict[str, Callable[[Path, Path, tuple[str, ...], dict[str, Any]], Run]] = {
    "naive": _naive,
    "naive-lean": _naive_lean,
    "potstill": _potstill,
    "potstill-python": _potstill,
    "polars": _polars,
    "duckdb": _duckdb,
}


class _Id(msgspec.Struct):
    id: str


def _kept(files: Sequence[Path]) -> tuple[int, str]:
    """Return how many rows were kept, and a hash of their ids in order."""
    rows, digest = 0, xxhash.xxh3_128()
    decoder = msgspec.json.Decoder(_Id)
    for path in files:
        with path.open("rb") as file:
            for line in file:
                digest.update(decoder.decode(line).id.encode())
                rows += 1
    return rows, digest.hexdigest()


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == "__main__":
    main(sys.argv[1:])

"""`potstill bench filter`: the filter beside four list passes and, where installed, polars and duckdb.

Every pipeline runs in a process of its own over the same seeded rows; the pipelines alternate in one run, and what is
compared is CPU seconds, paired by round, since wall time on a shared machine says little. Potstill's figures include
what the others leave out: shards, checksums, fsync, manifest and the ledger of rejected rows. The run fails where two
pipelines keep different rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from bench.filter_live import measure_live
from bench.filter_report import write_report
from bench.filter_stages import measure_stages
from bench.machine import machine
from bench.rows import make_phrases, write_rows, write_variants
from engine.command import path_of, whole
from engine.errors import PotstillError
from engine.native.load import SWITCH, load_kernel
from engine.part import make_folder
from engine.progress import note

PACKAGES = ("numba", "msgspec", "xxhash", "hyperscan", "ahocorasick-rs", "numpy", "orjson", "polars", "duckdb")
PEERS = ("polars", "duckdb")
LIVE_ROWS = 100_000
MADE_ROWS = 1_000_000
"""A multiple of so many rows is these, several times over with small changes: making them all would take minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill bench filter`."""
    parser.add_argument("--rows", type=whole(1), default=200_000, help="rows of the timed runs (default: 200,000)")
    parser.add_argument("--long-rows", type=whole(1), help="rows with the longer phrase lists (default: as many)")
    parser.add_argument("--rounds", type=whole(1), default=5, help="alternating rounds (default: 5)")
    parser.add_argument("--phrases", type=whole(1), nargs="+", default=[6, 50, 500], help="lengths of the phrase list")
    parser.add_argument("--memory-rows", type=whole(1), nargs="*", default=[1_000_000], help="rows of the memory runs")
    parser.add_argument(
        "--naive-rows", type=whole(1), default=1_000_000, help="most rows that naive is given for memory"
    )
    parser.add_argument("--workers", type=whole(1), nargs="*", default=[], help="also measure with so many workers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="default: those that are installed")
    parser.add_argument("--write", type=path_of, metavar="DIR", help="write filter.json and filter.md there")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it."""
    if args.write:
        make_folder(args.write)
    if load_kernel(build=True) is None:
        note("the filter is not compiled here (docs/filter.md): these are the figures of its Python form")
    peers = [name for name in PEERS if importlib.util.find_spec(name)] if args.peers is None else args.peers
    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as name:
        bench = _Bench(Path(name), args.seed)
        found: dict[str, Any] = {"machine": machine(PACKAGES), "rows": args.rows, "seed": args.seed}
        found["speed"] = {
            str(count): bench.speed(args.rows, count, args.rounds, peers)
            if count == min(args.phrases)
            else bench.speed(args.long_rows or args.rows, count, args.rounds, [])
            for count in args.phrases
        }
        found["stages_us"] = measure_stages(bench.source(args.rows), rounds=args.rounds)
        found["live_us"] = measure_live(bench.source(min(args.rows, LIVE_ROWS)), rounds=args.rounds)
        if args.workers:
            found["workers"] = bench.workers(args.rows, args.workers, args.rounds)
        found["memory"] = {
            str(rows): bench.memory(rows, peers if rows <= args.naive_rows else [], naive=rows <= args.naive_rows)
            for rows in args.memory_rows
        }
    if args.write:
        write_report(args.write, found)
    return found


class _Bench:
    """Rows on disk, made once for each size."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed

    def source(self, rows: int) -> Path:
        path = self._folder / f"rows-{rows}.jsonl"
        if not path.exists():
            note(f"writing {rows:,} rows")
            times, rest = divmod(rows, MADE_ROWS)
            if times > 1 and not rest:
                write_variants(self.source(MADE_ROWS), path, times)
            else:
                write_rows(path, rows, seed=self._seed)
        return path

    def speed(self, rows: int, phrases: int, rounds: int, peers: list[str]) -> dict[str, Any]:
        """Alternate the pipelines and return the CPU microseconds a row and the ratios, paired by round."""
        names = ["naive", "naive-lean", "potstill", "potstill-python", *peers]
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            # The order changes from round to round, so that none always runs on a cold cache.
            order = names[number % len(names) :] + names[: number % len(names)]
            results = {name: self.run(name, rows, phrases) for name in order}
            _check_same(results)
            for name, result in results.items():
                times[name].append(result["cpu_s"] * 1e6 / rows)
            note(f"{phrases} phrases, round {number + 1}: " + ", ".join(f"{n} {times[n][-1]:.2f} us" for n in names))
        return {
            "rows": rows,
            "kept": results["potstill"]["kept"],
            "pipelines": {name: _compare(name, times) for name in names},
        }

    def workers(self, rows: int, counts: list[int], rounds: int) -> dict[str, Any]:
        """Return wall and CPU microseconds a row by number of workers; 0 is this process alone."""
        found: dict[int, list[dict[str, Any]]] = {count: [] for count in [0, *counts]}
        for _ in range(rounds):
            for count, results in found.items():
                results.append(self.run("potstill", rows, 6, workers=count))
        return {
            str(count): {
                "wall_us": _median([result["wall_s"] * 1e6 / rows for result in results]),
                "cpu_us": _median([result["cpu_s"] * 1e6 / rows for result in results]),
            }
            for count, results in found.items()
        }

    def memory(self, rows: int, peers: list[str], *, naive: bool) -> dict[str, Any]:
        """Return the peak memory of each pipeline at one size."""
        names = ["potstill", *(["naive", "naive-lean", *peers] if naive else [])]
        results = {name: self.run(name, rows, 6) for name in names}
        _check_same(results)
        peak = {name: result["peak_mb"] for name, result in results.items()}
        note(f"{rows:,} rows: " + ", ".join(f"{name} {mb:,.0f} MB" for name, mb in peak.items()))
        return {
            "peak_mb": peak,
            "times_potstill": {name: round(mb / peak["potstill"], 1) for name, mb in peak.items()},
            "kept": results["potstill"]["kept"],
        }

    def run(self, name: str, rows: int, phrases: int, **options: Any) -> dict[str, Any]:
        """Run one pipeline in a process of its own and return what it printed."""
        source = self.source(rows)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            listed = msgspec.json.encode(make_phrases(phrases)).decode()
            given = msgspec.json.encode(options).decode()
            command = [sys.executable, "-m", "bench.pipelines", name, str(source), folder, listed, given]
            environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
            if name == "potstill-python":
                environment[SWITCH] = "0"
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise PotstillError(f"the {name} pipeline failed: {done.stderr.strip().splitlines()[-1:]}")
        found: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
        return found


def _check_same(results: dict[str, dict[str, Any]]) -> None:
    kept = {name: (result["kept"], result["kept_xxh3"]) for name, result in results.items()}
    if len(set(kept.values())) > 1:
        raise PotstillError(f"the pipelines keep different rows: { {name: rows for name, (rows, _) in kept.items()} }")


def _compare(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Return a pipeline's own figures and how many times as long each takes as Potstill, paired by round."""
    ratios = [own / potstill for own, potstill in zip(times[name], times["potstill"], strict=True)]
    return {
        "cpu_us": _median(times[name]),
        "rows_per_cpu_s": round(1e6 / statistics.median(times[name])),
        "times_potstill": _median(ratios),
        "rounds": [round(ratio, 2) for ratio in ratios],
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)

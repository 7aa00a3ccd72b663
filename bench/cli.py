"""The bench's command: `potstill bench WORKLOAD`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from engine.command import Command

WORKLOADS: dict[str, tuple[str, str]] = {
    "filter": ("bench.filter", "the filter beside four list passes, polars and duckdb: CPU seconds, memory, stages"),
    "bulk": ("bench.bulk", "one large generation, killed on the way, resumed, counted and verified"),
    "loop": ("bench.loop", "the generate loop alone: memory by number of prompts, CPU share at a rate"),
    "engine": ("bench.engine", "the whole generate loop beside vLLM's own offline calls"),
    "train": (
        "bench.train",
        "the trainer beside the original recipe: trained tokens a second at the same held-out loss",
    ),
}
"""Workload -> (module with `add_arguments(parser)` and `main(args) -> dict`, one line of help)."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    workloads = parser.add_subparsers(dest="workload", metavar="WORKLOAD", required=True)
    for name, (module, help_line) in WORKLOADS.items():
        workload = workloads.add_parser(name, help=help_line, description=help_line)
        importlib.import_module(module).add_arguments(workload)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(WORKLOADS[args.workload][0]).main(args)
    return found


COMMANDS = {"bench": Command(_arguments, _run)}

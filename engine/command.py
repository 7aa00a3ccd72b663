"""Command: what a room offers to the front door."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import msgspec


class Command(msgspec.Struct, frozen=True):
    """One subcommand. `run` returns the object that becomes the last line on stdout."""

    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    failed: Callable[[dict[str, Any]], bool] | None = None
    """Says of the result that the exit code is 1."""


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command that reads a configuration takes."""
    parser.add_argument("config", help="configuration file (TOML)")
    set_argument(parser)


def set_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set section.key=value`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override one setting, as section.key=value",
    )

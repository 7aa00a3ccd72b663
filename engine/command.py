"""Command: what a room offers to the front door."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec


class Command(msgspec.Struct, frozen=True):
    """One subcommand. `run` returns the object that becomes the last line on stdout."""

    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    failed: Callable[[dict[str, Any]], bool] | None = None
    """Says of the result that the exit code is 1."""


def command_of(module: str, failed: Callable[[dict[str, Any]], bool] | None = None) -> Command:
    """Return the command of a module with `add_arguments(parser)` and `main(args)`, imported once it is wanted."""

    def arguments(parser: argparse.ArgumentParser) -> None:
        importlib.import_module(module).add_arguments(parser)

    def run(args: argparse.Namespace) -> dict[str, Any]:
        found: dict[str, Any] = importlib.import_module(module).main(args)
        return found

    return Command(arguments, run, failed)


def names_in(text: str) -> list[str]:
    """Return the names of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def path_of(text: str) -> Path:
    """Read a path of the command line. An empty one, as `$RUN` is where it is not set, is not the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number of the command line that lies between these two."""
    bounds = f"from {least} on" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {bounds}")
        return number

    return read


def share(text: str) -> float:
    """Read a share of the command line: above 0, and 1 at most."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1")
    return number


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

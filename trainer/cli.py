"""The trainer's command: flags in, one JSON line out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from engine.command import Command, config_arguments
from engine.config import load


def _arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="RUN", help="run whose kept rows are learnt from")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: RUN)")
    parser.add_argument("--check", action="store_true", help="only check rows, template and tokens; needs no GPU")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    # Here, so that asking for help loads no more than the flags above.
    from trainer.train import check, train

    config = load(Path(args.config), args.overrides)
    if args.check:
        return check(config, args.data)
    result: dict[str, Any] = msgspec.to_builtins(train(config, args.data, args.out or args.data))
    return result


COMMANDS = {"train": Command(_arguments, _run)}

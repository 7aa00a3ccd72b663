"""The trainer's commands: flags in, one JSON line out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from engine.command import Command, config_arguments
from engine.config import load
from engine.errors import TrainError


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


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the run is to be (its disk)")


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from trainer.doctor import examine

    found = examine(load(Path(args.config), args.overrides), args.out)
    if found["fail"]:
        print(msgspec.json.encode(found).decode(), flush=True)
        raise TrainError(f"{found['fail']} checks fail; nothing is worth starting before they are mended")
    return found


COMMANDS = {"train": Command(_arguments, _run), "doctor": Command(_doctor_arguments, _doctor)}

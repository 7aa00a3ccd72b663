"""The commands of evals: eval, report, and run, which does every stage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.command import Command, config_arguments, path_of
from engine.config import load


def default_run(config: Path) -> Path:
    """Return the run folder of a configuration file that names none."""
    return Path("runs") / config.stem


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--run", type=path_of, metavar="RUN", help="run folder with the student; default: runs/CONFIG's name"
    )


def _eval(args: argparse.Namespace) -> dict[str, Any]:
    from evals.evaluate import evaluate

    config = Path(args.config)
    return evaluate(load(config, args.overrides), args.run or default_run(config))


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_of, metavar="RUN", help="run folder")


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from evals.report import write_report

    return {"report": str(write_report(args.run))}


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument("--out", type=path_of, metavar="RUN", help="run folder; default: runs/CONFIG's name")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from evals.pipeline import run_all

    config = Path(args.config)
    return run_all(config, args.out or default_run(config), args.overrides)


COMMANDS = {
    "eval": Command(_eval_arguments, _eval),
    "report": Command(_report_arguments, _report),
    "run": Command(_run_arguments, _run),
}

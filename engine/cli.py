"""The engine's commands: generate, filter, explain, verify, replay, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.command import Command, command_of, config_arguments, names_in, path_of, set_argument, whole
from engine.config import load


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--out", required=True, type=path_of, metavar="RUN", help="run folder to write or to go on with"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "always"),
        default="auto",
        help="a run that is there is gone on with; never: refuse one, always: refuse to begin one (default: auto)",
    )
    parser.add_argument("--no-gate", action="store_true", help="go on whatever the first rows show")
    parser.add_argument(
        "--metrics-port", type=whole(0, 65535), metavar="PORT", help="serve Prometheus text on 127.0.0.1:PORT"
    )


def _generate(args: argparse.Namespace) -> dict[str, Any]:
    from engine.generate import generate

    settings = load(Path(args.config), args.overrides)
    return generate(settings, args.out, resume=args.resume, gate=not args.no_gate, metrics_port=args.metrics_port)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_of, metavar="RUN", help="run folder")


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    from engine.verify import verify

    return verify(args.run)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    from engine.exports import names

    parser.add_argument("run", type=path_of, metavar="RUN", help="run folder, of generate or of filter")
    parser.add_argument("--to", required=True, metavar="FORMATS", help=f"some of {','.join(names())}")
    parser.add_argument("--out", type=path_of, metavar="FOLDER", help="folder to write; default: RUN/export/NAME")
    parser.add_argument("--name", metavar="NAME", help="what it is called; default: the run's name")
    parser.add_argument("--include-truncated", action="store_true", help="also rows that the token limit cut off")
    parser.add_argument(
        "--val-fraction", type=float, metavar="SHARE", help="share held out; default: the run's train.val_fraction"
    )
    parser.add_argument("--push-to", metavar="OWNER/NAME", help="send it to this repository on the Hugging Face hub")
    set_argument(parser)


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from engine.export import Request, export

    request = Request(
        to=names_in(args.to),
        out=args.out,
        name=args.name,
        val_fraction=args.val_fraction,
        include_truncated=args.include_truncated,
        push_to=args.push_to,
        overrides=args.overrides,
    )
    return export(args.run, request)


COMMANDS = {
    "generate": Command(_generate_arguments, _generate),
    "filter": command_of("engine.filter_run", failed=lambda result: 0 < result.get("asked", 0) == result["failed"]),
    "explain": command_of("engine.explain"),
    "verify": Command(_verify_arguments, _verify),
    "replay": command_of("engine.replay", failed=lambda result: not result["equal"]),
    "export": Command(_export_arguments, _export),
}

"""The front door: a subcommand leads to the room that does it, and only that room is imported.

Stdout is for results and ends with one line of JSON; progress and errors go to stderr. Exit 0 done, 1 failed,
2 usage, 130 interrupted. A failure is one sentence; `--debug` shows where it came from.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("evals.cli", "do every stage: generate, train, eval, report; resume at the stage that is not done"),
    "doctor": ("trainer.cli", "advice before money is spent: models, card, libraries, memory, prompts, disk"),
    "generate": ("engine.cli", "ask the teacher, filter its answers as they arrive, write sharded JSONL"),
    "filter": ("engine.cli", "filter rows that exist already"),
    "explain": ("engine.cli", "why a row was dropped, what it duplicated, and what each rule cost each template"),
    "verify": ("engine.cli", "check a run: checksums, counts, and that the kept rows obey its filter"),
    "replay": ("engine.cli", "ask the teacher one row of a run again, and compare"),
    "export": ("engine.cli", "write the kept rows, with configurations, in the forms that other trainers read"),
    "train": ("trainer.cli", "fine-tune the student on the kept rows of a run"),
    "export-model": ("trainer.cli", "write the student as adapter, merged, fp8, w4a16 or gguf, and verify its answers"),
    "serve": ("trainer.cli", "start the student's vLLM server, or print its command, or try it out"),
    "eval": ("evals.cli", "ask teacher, student and untrained student the same held-out items"),
    "report": ("evals.cli", "write report.html for a run"),
    "bench": ("bench.cli", "measure throughput side by side with the obvious alternatives"),
}
"""Command -> (module that does it, one line of help)."""
ROOMS = ("engine", "trainer", "evals", "bench")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    top = argparse.ArgumentParser(prog="potstill", description="Distil a big language model into a small one.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, (module, help_line) in COMMANDS.items():
        parser = commands.add_parser(name, help=help_line, description=help_line)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == wanted:
            importlib.import_module(module).COMMANDS[name].arguments(parser)
    args = top.parse_args(arguments)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from engine.errors import PotstillError

    command = importlib.import_module(COMMANDS[args.command][0]).COMMANDS[args.command]
    try:
        result: dict[str, Any] = command.run(args)
    except PotstillError as error:
        if args.debug:
            raise
        print(f"potstill {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if args.debug or error.name is None or error.name.partition(".")[0] in ROOMS:
            raise
        print(
            f"potstill {args.command}: needs {error.name}, which is not installed; pip install 'potstill[cpu]', or "
            "'potstill[gpu]' on a machine with CUDA",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        if args.debug:
            raise
        print(f"potstill {args.command}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    import orjson

    if result:
        print(orjson.dumps(result).decode(), flush=True)
    return 1 if command.failed is not None and command.failed(result) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The front door: a subcommand leads to the room that does it, and only that room is imported.

Stdout is for results and ends with one line of JSON; progress and errors go to stderr, as far as it takes them. Exit 0
done, 1 failed, 2 usage, 130 interrupted. A failure is one sentence; `--debug` shows where it came from.
"""

from __future__ import annotations

import sys

# Little is imported up here: Ctrl-C is caught in `main`, not before.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

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
    try:
        from engine.complaints import tolerate_loss
        from engine.standard_output import stand_in

        tolerate_loss()
        for argument in arguments:
            if not _is_text(argument):
                return _say(f"potstill: {argument!a} is not UTF-8 text; rename it, or set a UTF-8 locale", 2)
        parsed = _parsed(arguments)
        # Not before: help that is asked for with standard output closed is shown on standard error.
        stand_in()
        return _run(parsed)
    except KeyboardInterrupt:
        if "--debug" in arguments:
            raise
        command = next((argument for argument in arguments if argument in COMMANDS), "")
        return _say(f"potstill {command}".strip() + ": interrupted; run the same command again to go on", 130)


def _parsed(arguments: list[str]) -> argparse.Namespace:
    import argparse
    import importlib

    top = argparse.ArgumentParser(prog="potstill", description="Distil a big language model into a small one.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, (module, help_line) in COMMANDS.items():
        parser = commands.add_parser(name, help=help_line, description=help_line)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == wanted:
            importlib.import_module(module).COMMANDS[name].arguments(parser)
    return top.parse_args(arguments)


def _run(args: argparse.Namespace) -> int:
    import importlib

    from engine.errors import PotstillError
    from engine.standard_output import tell

    command = importlib.import_module(COMMANDS[args.command][0]).COMMANDS[args.command]
    try:
        result = command.run(args)
        if result:
            tell(result)
    except PotstillError as error:
        if args.debug:
            raise
        return _say(f"potstill {args.command}: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        if args.debug or error.name is None or error.name.partition(".")[0] in ROOMS:
            raise
        return _say(
            f"potstill {args.command}: needs {error.name}, which is not installed; pip install 'potstill[cpu]', or "
            "'potstill[gpu]' on a machine with CUDA",
            2,
        )
    except OSError as error:
        # What the machine refused where no room has a better sentence.
        if args.debug:
            raise
        return _say(f"potstill {args.command}: {error}; --debug shows where", 1)
    return 1 if command.failed is not None and command.failed(result) else 0


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _say(sentence: str, exit_code: int) -> int:
    print(sentence, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

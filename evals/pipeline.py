"""The whole way, stage by stage: generate, train, eval, report, each a process of its own.

Promises that a stage which fails ends the run with the stage's own exit code, and that an interrupt reaches the
stage once, so that it can finish what is in flight. A stage that is done does nothing, so a run goes on where it
stopped. Knows nothing of what a stage does: only its command line and the last line of its output.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import load
from engine.decode import UNREADABLE
from engine.errors import ConfigError, PotstillError
from engine.progress import note
from engine.signals import ends_with_parent, forwarded

FRONT_DOOR = Path(__file__).parent.parent / "potstill.py"
"""By its path: `-m potstill` would take an `engine` or `evals` that happens to lie in the current folder."""


class StageError(PotstillError):
    """A stage failed; it has said why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_all(config: Path, run: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run every stage that the configuration describes and return one result for all.

    Without a student there is nothing to train or evaluate, without held-out items nothing to evaluate.

    Raises: StageError with the exit code of the stage that failed.
    """
    settings = load(config, overrides)
    if settings.eval.items and not settings.student.model:
        raise ConfigError(f"{config}: eval.items is set but student.model is not; name a student, or remove [eval]")
    start = time.monotonic()
    changes = [argument for override in overrides for argument in ("--set", override)]
    stages = [("generate", [str(config), "--out", str(run), *changes])]
    if settings.student.model:
        stages.append(("train", [str(config), "--data", str(run), *changes]))
    if settings.eval.items:
        stages.append(("eval", [str(config), "--run", str(run), *changes]))
    stages.append(("report", [str(run)]))
    results = {}
    for number, (name, arguments) in enumerate(stages, start=1):
        note(f"potstill run: {name} ({number} of {len(stages)})")
        results[name] = run_stage(name, arguments)
    return _combined(results, seconds=time.monotonic() - start)


def run_stage(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one command of potstill and return its result; its progress goes to stderr as it comes.

    Raises: StageError where it fails.
    """
    command = [sys.executable, str(FRONT_DOOR), name, *arguments]
    # A group of its own: Ctrl-C in a terminal would else reach the stage twice, and twice means "stop at once".
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0, preexec_fn=ends_with_parent()) as process,
        forwarded([process]) as received,
    ):
        last = _last_line(process)
        code = process.wait()
    if code < 0:
        code = 128 - code
    if code == 130 or (received and not code):
        raise StageError(f"{name} was interrupted; run the same command again to go on", 130)
    if code:
        raise StageError(f"{name} failed (see above); mend it and run the same command again to go on", code)
    try:
        return msgspec.json.decode(last, type=dict[str, Any])
    except UNREADABLE:
        raise StageError(
            f"{name} ended without a result (its last line is {last[:80]!r}); please report this", 1
        ) from None


def _last_line(process: subprocess.Popen[bytes]) -> bytes:
    """Return the last line of a stage's output; what comes before it is for people."""
    last = b""
    for line in process.stdout or ():
        if last:
            sys.stderr.buffer.write(last)
            sys.stderr.flush()
        last = line
    return last


def _combined(results: dict[str, dict[str, Any]], *, seconds: float) -> dict[str, Any]:
    combined = dict(results["generate"])
    if "train" in results:
        combined["train"] = results["train"]
    if "eval" in results:
        combined |= results["eval"]
    combined |= results["report"]
    combined["seconds"] = round(seconds, 3)
    return combined

"""Launch: one training in several processes of this machine, one a card; across machines, `accelerate launch` does it.

Promises that no process is left behind: where one ends badly the others are ended, and a signal reaches each once.
Knows nothing of training.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import msgspec

from engine.decode import UNREADABLE
from engine.errors import Interrupted, TrainError
from engine.signals import ends_with_parent, forwarded

FRONT_DOOR = Path(__file__).parent.parent / "potstill.py"
LOOK_S = 0.1
GRACE_S = 10.0
"""How long the others may take to end by themselves when one has failed: they often fail for the same reason."""

Process = subprocess.Popen[bytes]


class ProcessError(TrainError):
    """A process of several failed; it has said why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(arguments: Sequence[str], count: int) -> dict[str, Any]:
    """Run `potstill` with these arguments in `count` processes and return the result of the first.

    Raises: ProcessError with the exit code of the process that failed, Interrupted after a signal.
    """
    command = [sys.executable, str(FRONT_DOOR), *arguments]
    shared = _environment(count)
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        # The first speaks for all. A group each: Ctrl-C in a terminal would else reach them once more.
        outputs: list[dict[str, Any]] = [{"stdout": subprocess.PIPE}]
        outputs += [{"stdout": subprocess.DEVNULL, "stderr": file} for file in said]
        running = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    env={**shared, **_place(number)},
                    process_group=0,
                    preexec_fn=ends_with_parent(),
                    **output,
                )
            )
            for number, output in enumerate(outputs)
        ]
        with forwarded(running) as received:
            failed = _wait(running)
        if received:
            raise Interrupted("train was interrupted; run the same command again to go on")
        if failed is not None:
            raise _failure(running, failed, said)
        return _result(running[0])


def _environment(count: int) -> dict[str, str]:
    """Return what all processes are told, in the words of torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _place(number: int) -> dict[str, str]:
    return {"RANK": str(number), "LOCAL_RANK": str(number)}


def _wait(running: Sequence[Process]) -> int | None:
    """Wait for all; return the number of the first that failed, after the others have been ended, or None."""
    while True:
        # Every one is asked: what the first waits for may be another that is dead.
        codes = [process.poll() for process in running]
        failed = next((number for number, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            break
        time.sleep(LOOK_S)
    if failed is not None:
        _end(running)
    return failed


def _end(running: Sequence[Process]) -> None:
    deadline = time.monotonic() + GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _failure(running: Sequence[Process], failed: int, said: Sequence[IO[bytes]]) -> ProcessError:
    """Return the error of the process that failed; what another than the first said is shown now."""
    code = running[failed].returncode
    if failed:
        said[failed - 1].seek(0)
        sys.stderr.buffer.write(said[failed - 1].read())
        sys.stderr.flush()
    reason = f"was killed by signal {-code}" if code < 0 else "failed (see above)"
    message = f"process {failed} of {len(running)} {reason}; mend it and run the same command again to go on"
    return ProcessError(message, 128 - code if code < 0 else code)


def _result(first: Process) -> dict[str, Any]:
    assert first.stdout is not None
    lines = first.stdout.read().splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=dict[str, Any])
    except UNREADABLE:
        raise TrainError("training ended without a result; please report this") from None

"""A replica's own process: a teacher behind a pipe, and what is said through it.

Promises that the teacher is closed when the pipe is, that a start is given up when the parent is gone, that what ends
the teacher is said before anything is closed, and that nothing is printed on stdout. Knows nothing of other replicas.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection, wait

import msgspec

from engine.backend import Backend, Watch, backend_here
from engine.complaints import tolerate_loss
from engine.config import Sampling, Teacher
from engine.errors import PotstillError
from engine.rows import Completion, Prompt
from engine.signals import release_interrupts

IDLE_S = 0.01
"""Wait before a teacher without a prompt is looked at again: a hundred looks a second cost a hundredth of a core."""


class Add(msgspec.Struct, tag=True):
    """To a replica: ask these."""

    prompts: list[Prompt]


class Abort(msgspec.Struct, tag=True):
    """To a replica: stop these."""

    ids: list[str]


class Ready(msgspec.Struct, tag=True):
    """From a replica: it has started."""

    capacity: int
    teacher: dict[str, str]


class Answers(msgspec.Struct, tag=True):
    """From a replica: these are finished."""

    completions: list[Completion]


class Died(msgspec.Struct, tag=True):
    """From a replica: its teacher is gone, why, and which class of engine/errors.py says so."""

    message: str
    kind: str = "EngineError"


encode = msgspec.msgpack.Encoder().encode
_to_worker = msgspec.msgpack.Decoder(Add | Abort)
from_worker = msgspec.msgpack.Decoder(Ready | Answers | Died)


def work(
    pipe: Connection, teacher: Teacher, sampling: Sampling, watch: Watch | None, environment: dict[str, str]
) -> None:
    """Run a worker process: a teacher behind a pipe. Ctrl-C is the parent's business."""
    # A session of its own: a Ctrl-C would otherwise end vLLM's processes below this one, which still finish rows.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    release_interrupts()
    tolerate_loss()
    os.dup2(2, 1)  # stdout is the parent's, for results
    os.environ.update(environment)
    started = threading.Event()
    threading.Thread(target=_end_with_parent, args=(started,), daemon=True).start()
    code = asyncio.run(_serve(pipe, teacher, sampling, watch, started))
    atexit.register(os._exit, code)  # everything is closed by now, and taking vLLM's modules apart lasts seconds
    sys.exit(code)


def _end_with_parent(started: threading.Event) -> None:
    """Kill this process and those below it if the parent dies while the teacher starts, when nobody reads the pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if not started.is_set():
        os.killpg(0, signal.SIGKILL)


async def _serve(
    pipe: Connection, teacher: Teacher, sampling: Sampling, watch: Watch | None, started: threading.Event
) -> int:
    """Run a teacher until the pipe closes or it dies, and return the exit code."""
    try:
        async with backend_here(teacher, sampling, watch=watch) as backend:
            started.set()
            _say(pipe, Ready(backend.capacity, backend.describe()))
            await _relay(pipe, backend)
            gc.freeze()  # this process ends: garbage need not be looked for any more
    except Exception as error:
        _die(pipe, error)
        return 1
    return 0


async def _relay(pipe: Connection, backend: Backend) -> None:
    """Pass orders in and answers out until the pipe closes."""
    answering = asyncio.create_task(_answer(pipe, backend))
    orders = asyncio.create_task(_obey(pipe, backend))
    done, pending = await asyncio.wait({answering, orders}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)
    for task in done:
        if error := task.exception():
            # Said before anything is closed: a dead teacher may be slow to close, and the parent waits.
            _die(pipe, error)
            raise error


def _die(pipe: Connection, error: BaseException) -> None:
    if isinstance(error, PotstillError):
        _say(pipe, Died(str(error), type(error).__name__))
    else:
        traceback.print_exception(error)
        _say(pipe, Died(f"{type(error).__name__}: {error}"))


async def _obey(pipe: Connection, backend: Backend) -> None:
    """Pass orders on until the pipe closes."""
    while True:
        try:
            data = await asyncio.to_thread(pipe.recv_bytes)
        except (EOFError, OSError):
            return
        order = _to_worker.decode(data)
        if isinstance(order, Add):
            await backend.add(order.prompts)
        else:
            await backend.abort(order.ids)


async def _answer(pipe: Connection, backend: Backend) -> None:
    while True:
        completions = await backend.completions()
        if completions:
            _say(pipe, Answers(completions))
        else:
            await asyncio.sleep(IDLE_S)


def _say(pipe: Connection, message: Ready | Answers | Died) -> None:
    try:
        pipe.send_bytes(encode(message))
    except OSError:  # the parent is gone; the order thread sees the same and ends this worker
        return

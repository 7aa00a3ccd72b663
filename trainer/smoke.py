"""Smoke test of a server: a few held-out questions to it and to the same student offline, and the answers compared.

Promises that the server that answers is the one that was started here, and that it is gone afterwards, also where this
process is killed. Knows nothing of how a server is set up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from engine.backend import answer_all
from engine.config import Teacher
from engine.errors import EndpointError, EngineError, ExportError, UsageError
from engine.openai_backend import OpenAIBackend
from engine.progress import note
from engine.rows import Completion, Prompt
from engine.signals import ends_with_parent
from engine.vllm_settings import eager, prepare_environment
from trainer.agreement import compare
from trainer.answers import from_vllm, sampling_of
from trainer.questions import held_out_prompts
from trainer.serve import Wish, program, serve_command, served_as
from trainer.student import NAME, Student

START_S = 600.0
"""Longest wait for the server: the first start on a GPU compiles."""
STOP_S = 30.0
"""Longest wait for it to end."""
QUESTIONS = 8
LEAST = 0.5
"""Share of answers that must be the offline ones: rounding may turn one or two, another prompt or model nearly all."""


def smoke(student: Student, wish: Wish) -> dict[str, Any]:
    """Start the server, ask it a few questions, stop it; return the first question and what the server said.

    Raises: ExportError where its answers are not the offline ones, EngineError where it does not start.
    """
    prompts = held_out_prompts(student, QUESTIONS)
    command = serve_command(student, wish)
    _check_free(wish.port)
    note("serve  asking the student offline")
    wanted = from_vllm(eager(served_as(student, wish)), sampling_of(student), prompts)
    with _running(command, wish.port) as seconds:
        got = asyncio.run(_ask(student, wish.port, prompts))
    agreement = compare(prompts, wanted, got)
    if agreement.share < LEAST:
        first = agreement.different[0]
        raise ExportError(
            f"{agreement.items - agreement.same} of {agreement.items} answers of the server are not the student's; it "
            f"answers {first.copy!r} to {first.question!r}, and offline the student answers {first.student!r}; "
            "compare both with potstill serve --print"
        )
    return {
        "question": prompts[0].question,
        "answer": got[0].text,
        "same": agreement.same,
        "asked": agreement.items,
        "start_s": round(seconds, 1),
        "command": list(command),
    }


async def _ask(student: Student, port: int, prompts: Sequence[Prompt]) -> list[Completion]:
    # Without template arguments: the server must know them.
    teacher = Teacher(backend="openai", base_url=f"http://127.0.0.1:{port}/v1", model=NAME, api_key_env="")
    async with OpenAIBackend(teacher, sampling_of(student)) as backend:
        return await answer_all(backend, prompts)


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[float]:
    """Run a server; gives the seconds that it took to start."""
    _check_free(port)
    prepare_environment()
    start = time.monotonic()
    note(f"serve  starting it on port {port}")
    with subprocess.Popen(
        [program(command), *command[1:]], stdout=2, start_new_session=True, preexec_fn=ends_with_parent()
    ) as process:
        try:
            while not _answers(port):
                if process.poll() is not None:
                    raise EngineError(f"the server ended with exit code {process.returncode}; its reason is above")
                if time.monotonic() - start > START_S:
                    raise EndpointError(f"the server does not listen after {START_S:.0f} s; see its log above")
                time.sleep(0.5)
            yield time.monotonic() - start
        finally:
            _stop(process)


def _check_free(port: int) -> None:
    if _answers(port):
        raise UsageError(f"something listens on port {port} already; stop it, or choose another with --port")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started: the engine is a process of its own, and has the card's memory."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0

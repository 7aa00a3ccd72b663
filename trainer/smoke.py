"""Smoke test of a server: one held-out question to it and to the same student offline, and the answers compared.

Promises that the server that answers is the one that was started here, and that it is gone afterwards. Knows nothing of
how a server is set up.
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
from engine.vllm_settings import prepare_environment
from trainer.answers import from_vllm, sampling_of
from trainer.questions import held_out_prompts
from trainer.serve import Wish, program, serve_command, served_as
from trainer.student import NAME, Student

START_S = 600.0
"""Longest wait for the server: the first start on a GPU compiles."""
STOP_S = 30.0
"""Longest wait for it to end."""


def smoke(student: Student, wish: Wish) -> dict[str, Any]:
    """Start the server, ask it one question, stop it; return question and answer.

    Raises: ExportError where its answer is not the offline one, EngineError where it does not start.
    """
    prompt = held_out_prompts(student, 1)[0]
    command = serve_command(student, wish)
    note("serve  asking the student offline")
    [wanted] = from_vllm(served_as(student, wish), sampling_of(student), [prompt])
    with _running(command, wish.port) as seconds:
        [got] = asyncio.run(_ask(student, wish.port, prompt))
    if got.error or got.text != wanted.text:
        raise ExportError(
            f"the server answers {got.error or got.text!r} to {prompt.question!r}, and offline the student answers "
            f"{wanted.text!r}; compare both with potstill serve --print"
        )
    return {"question": prompt.question, "answer": got.text, "start_s": round(seconds, 1), "command": list(command)}


async def _ask(student: Student, port: int, prompt: Prompt) -> list[Completion]:
    # Without template arguments: the server must know them.
    teacher = Teacher(backend="openai", base_url=f"http://127.0.0.1:{port}/v1", model=NAME, api_key_env="")
    async with OpenAIBackend(teacher, sampling_of(student)) as backend:
        return await answer_all(backend, [prompt])


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[float]:
    """Run a server; gives the seconds that it took to start."""
    if _answers(port):
        raise UsageError(f"something listens on port {port} already; stop it, or choose another with --port")
    prepare_environment()
    start = time.monotonic()
    note(f"serve  starting it on port {port}")
    with subprocess.Popen([program(command), *command[1:]], stdout=2, start_new_session=True) as process:
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

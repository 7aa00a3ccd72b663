"""Any OpenAI-compatible endpoint as a Backend: keeps `teacher.max_in_flight` prompts at it until all are answered.

Promises that an added prompt comes back once, with text or with `error`; that an endpoint which has gone down raises
EndpointError instead of failing row after row, so that a resumed run asks those prompts again; and that every task
and socket ends with the block. Knows nothing of HTTP: openai_client.py asks one prompt.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from engine.backend import Watch
from engine.config import Sampling, Teacher
from engine.errors import EndpointError
from engine.openai_client import FIRST_BACKOFF_S, PROBE, Client
from engine.openai_connection import Connection
from engine.openai_refusal import RefusedError, Spent, TransientError
from engine.rows import Completion, Prompt

DOWN_AFTER = 8
"""Prompts in a row that used up their retries, with no answer in between: the endpoint is down."""


class OpenAIBackend:
    """Asks each prompt in a task of its own; all of them belong to one TaskGroup in one owner task."""

    def __init__(
        self,
        teacher: Teacher,
        sampling: Sampling,
        *,
        watch: Watch | None = None,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self.capacity = teacher.max_in_flight
        self._connection = Connection(teacher, watch)
        self._client = Client(self._connection, teacher, sampling, first_backoff_s=first_backoff_s)
        self._retries = teacher.retries
        self._waiting: OrderedDict[str, Prompt] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._done: list[Completion] = []
        self._suspects: list[tuple[float, Completion]] = []
        self._exhausted = 0
        self._work = asyncio.Event()
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        self._owner = asyncio.create_task(self._serve())
        self._owner.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.cancel()
        try:
            await asyncio.wait([self._owner])
        finally:
            await self._connection.__aexit__(kind, error, trace)
        self._waiting.clear()
        failure = None if self._owner.cancelled() else self._owner.exception()
        # Whoever leaves wants no more answers, so a lost endpoint is nothing to them; a bug of ours is.
        if failure is not None and error is None and not isinstance(failure, EndpointError):
            raise failure

    def describe(self) -> dict[str, str]:
        return self._connection.describe()

    async def add(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._waiting[prompt.id] = prompt
        self._work.set()

    async def abort(self, ids: Sequence[str]) -> None:
        for prompt_id in ids:
            self._waiting.pop(prompt_id, None)
            if task := self._running.get(prompt_id):
                task.cancel()
        self._news.set()

    async def completions(self) -> list[Completion]:
        while not self._done:
            if self._owner.done():
                self._owner.result()
            if not self._running and not self._waiting:
                await self._acquit()
                break
            self._news.clear()
            await self._news.wait()
        done, self._done = self._done, []
        return done

    async def _serve(self) -> None:
        """Start a request whenever there is a prompt and a free place; an EndpointError in one ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._work.wait()
                    self._work.clear()
                    while self._waiting and len(self._running) < self.capacity:
                        prompt_id, prompt = self._waiting.popitem(last=False)
                        task = self._running[prompt_id] = group.create_task(self._answer(prompt))
                        task.add_done_callback(partial(self._ended, prompt_id))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _ended(self, prompt_id: str, task: asyncio.Task[None]) -> None:
        if self._running.get(prompt_id) is task:  # else it was aborted and added again meanwhile
            del self._running[prompt_id]
        self._work.set()
        self._news.set()

    async def _answer(self, prompt: Prompt) -> None:
        started = time.monotonic()
        try:
            self._alive(await self._client.ask(prompt), started)
        except RefusedError as refusal:
            self._alive(_failed(prompt, str(refusal), refusal.spent), started)
        except TransientError as fault:
            self._suspect(prompt, fault)

    def _alive(self, completion: Completion, started: float) -> None:
        """Hand over an answer; it also proves that prompts which ran out of retries before it was asked failed alone.

        Those that did so later may have met an endpoint which had gone down meanwhile.
        """
        self._exhausted = 0
        self._done += [failed for at, failed in self._suspects if at < started]
        self._suspects = [suspect for suspect in self._suspects if suspect[0] >= started]
        self._done.append(completion)

    def _suspect(self, prompt: Prompt, fault: TransientError) -> None:
        """Hold a prompt that ran out of retries until it is clear whether it failed or the endpoint did.

        Raises: EndpointError where it is the endpoint; a resumed run then asks the held prompts again.
        """
        self._exhausted += 1
        if self._exhausted >= DOWN_AFTER:
            why = f"{DOWN_AFTER} prompts in a row ran out of retries, the last one with: {fault}"
            raise self._connection.error("gone", why)
        failed = _failed(prompt, f"{fault}, after {self._retries} retries", fault.spent)
        self._suspects.append((time.monotonic(), failed))

    async def _acquit(self) -> None:
        """Nothing is in flight that could prove the endpoint alive: ask it, then hand over the held prompts.

        The list of models proves nothing: it is there before the model is, and after it.
        """
        if self._suspects:
            try:
                with suppress(RefusedError):  # that is an answer, too
                    await self._client.ask(PROBE)
            except TransientError as fault:
                raise self._connection.error("gone", str(fault)) from None
        self._done += [failed for _, failed in self._suspects]
        self._suspects.clear()
        self._exhausted = 0
        await asyncio.sleep(0)


def _failed(prompt: Prompt, why: str, spent: Spent) -> Completion:
    return Completion(
        id=prompt.id,
        text="",
        finish_reason="error",
        error=why,
        prompt_tokens=spent.prompt_tokens,
        sampled_tokens=spent.output_tokens,
    )

"""VllmBackend: a teacher on vLLM's offline engine, in this process.

Prompts are rendered in batches off the engine's thread and fed to it through a window just above what it runs at once,
so it never waits and never drowns. Promises what Backend does; a prompt that the engine refuses is one Completion with
`error`. Everything that says vllm is in the vllm_* files; this one is the asyncio side of `EngineThread`.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.backend import Watch
from engine.config import Sampling, Teacher
from engine.errors import MissingError
from engine.models import resolve_model
from engine.rows import Completion, Prompt
from engine.vllm_start import Engine
from engine.vllm_thread import EngineThread

LOT = 256
"""Prompts rendered and handed to the engine at once: adding them holds a step up by about 50 ms."""
SLACK = 256
"""Prompts in the engine beyond those that run: half a second of a fast teacher's rows."""
STOP_S = 15.0
"""Longest wait for the step that is running and for vLLM's own processes to end."""


DEAD_STOP_S = 2.0
"""The same after the engine has failed."""


class VllmBackend:
    """One vLLM engine. Not thread-safe: use it from the event loop that entered it."""

    def __init__(self, teacher: Teacher, sampling: Sampling, *, watch: Watch | None = None) -> None:
        self.capacity = teacher.max_num_seqs or SLACK
        self._teacher = teacher
        self._sampling = sampling
        self._watch = watch
        self._facts: dict[str, str] = {}
        self._waiting: OrderedDict[str, Prompt] = OrderedDict()
        self._asked: set[str] = set()
        self._done: list[Completion] = []
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        if importlib.util.find_spec("vllm") is None:
            raise MissingError(
                "teacher.backend is vllm, and vLLM is not installed; pip install 'potstill[cpu]' or "
                "'potstill[gpu]', or set teacher.backend to openai or echo"
            )
        _check_adapter(self._teacher.adapter)
        model = await asyncio.to_thread(resolve_model, self._teacher.model, key="teacher.model")
        loop = asyncio.get_running_loop()
        started: asyncio.Future[Engine] = loop.create_future()

        def post(event: Engine | list[Completion] | BaseException) -> None:
            try:
                loop.call_soon_threadsafe(self._take, event, started)
            except RuntimeError:  # the loop is closed: nobody waits for an answer any more
                return

        self._thread = EngineThread(self._teacher, self._sampling, model, watch=self._watch, post=post)
        self._thread.start()
        try:
            engine = await started
        except BaseException:
            await self._stop()
            raise
        self.capacity, self._facts = engine.capacity, engine.facts
        self._feeding = asyncio.create_task(self._feed(engine))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feeding.cancel()
        await asyncio.wait({self._feeding})
        await self._stop()

    async def _stop(self) -> None:
        """End the thread; one whose engine process was killed waits for ever, and is left behind as it is."""
        self._thread.close()
        await asyncio.to_thread(self._thread.join, STOP_S if self._error is None else DEAD_STOP_S)

    def describe(self) -> dict[str, str]:
        """Name the model, its hash and the library versions; complete once the engine has started."""
        return {"backend": "vllm", "model": self._teacher.model, **self._facts}

    async def add(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._waiting[prompt.id] = prompt
        self._room.set()

    async def abort(self, ids: Sequence[str]) -> None:
        for prompt_id in ids:
            self._waiting.pop(prompt_id, None)
        running = [prompt_id for prompt_id in ids if prompt_id in self._asked]
        self._asked.difference_update(running)
        if running:
            self._thread.abort(running)
        self._room.set()
        self._news.set()

    async def completions(self) -> list[Completion]:
        while not self._done:
            if self._error is not None:
                raise self._error
            if not self._asked and not self._waiting:
                await asyncio.sleep(0)
                return []
            self._news.clear()
            await self._news.wait()
        done, self._done = self._done, []
        return done

    def _take(self, event: Engine | list[Completion] | BaseException, started: asyncio.Future[Engine]) -> None:
        """Take in what the engine's thread posted."""
        if isinstance(event, Engine):
            if not started.done():
                started.set_result(event)
        elif isinstance(event, BaseException):
            if not started.done():
                started.set_exception(event)
            self._fail(event)
        else:
            fresh = [completion for completion in event if completion.id in self._asked]
            self._asked.difference_update(completion.id for completion in fresh)
            self._done += fresh
            self._room.set()
            self._news.set()

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._news.set()

    async def _feed(self, engine: Engine) -> None:
        """Keep the engine's window full, in the order in which the prompts came."""
        try:
            while True:
                self._room.clear()
                while self._waiting and (room := self.capacity + SLACK - len(self._asked)) > 0:
                    lot = [self._waiting.popitem(last=False)[1] for _ in range(min(room, LOT, len(self._waiting)))]
                    self._asked.update(prompt.id for prompt in lot)
                    rendered = await asyncio.to_thread(engine.renderer.render, lot)
                    self._thread.add([one for one in rendered if one.prompt.id in self._asked])
                await self._room.wait()
        except Exception as error:
            self._fail(error)
            raise


def _check_adapter(adapter: str) -> None:
    if adapter and not (Path(adapter) / "adapter_config.json").is_file():
        raise MissingError(
            f"teacher.adapter: {adapter} is not a LoRA adapter, it has no adapter_config.json; "
            "give the folder that the trainer saved"
        )

"""Replicas: one Backend made of several worker processes, each with a teacher of its own.

A small teacher is bound by the host, not by the card, so several share one GPU; with more GPUs each replica gets its
own. Work is pulled: a replica is sent a chunk of one template when it has room, never dealt out in advance. Promises
that a worker ends when this process does, however that ends, and that a worker's death is an EngineError here.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from engine import errors
from engine.backend import Watch
from engine.chunks import Waiting
from engine.config import Sampling, Teacher
from engine.errors import EngineError, PotstillError
from engine.mps import Mps, mps_for
from engine.placement import cards_used, environment, on_one_card, share
from engine.progress import note
from engine.replica_worker import Abort, Add, Answers, Died, Ready, encode, from_worker, work
from engine.rows import Completion, Prompt
from engine.signals import interrupts_held

PATIENCE_S = 60.0
"""Seconds of starting after which it is said that it goes on."""
STOP_S = 30.0
"""Longest wait for a replica to end by itself."""
CHUNK = 32
"""Prompts of one template that a busy replica is sent at a time: an eighth of its batch where that is less."""


class ReplicaBackend:
    """Several teachers behind one Backend."""

    def __init__(
        self, teacher: Teacher, sampling: Sampling, *, watch: Watch | None = None, chosen_because: str = ""
    ) -> None:
        self.capacity = 0
        self._teacher = teacher
        self._sampling = sampling
        self._watch = watch
        self._chosen = {"replicas_because": chosen_because} if chosen_because else {}
        self._replicas: list[_Replica] = []
        self._mps: Mps | None = None
        self._waiting = Waiting()
        self._place: dict[str, _Replica] = {}
        self._inbox: asyncio.Queue[tuple[_Replica, Ready | Answers | Died]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def describe(self) -> dict[str, str]:
        count = len(self._replicas)
        gpus = {"gpus": str(cards_used(self._teacher))} if self._teacher.backend == "vllm" else {}
        mps = {"mps": "on"} if self._mps is not None else {}
        return {**self._replicas[0].described, "replicas": str(count), **gpus, **mps, **self._chosen}

    async def add(self, prompts: Sequence[Prompt]) -> None:
        refused = []
        for prompt in prompts:
            if _sendable(prompt):
                self._waiting.add(prompt)
            else:
                refused.append(_unsendable(prompt))
        if refused:
            self._inbox.put_nowait((self._replicas[0], Answers(refused)))
        self._feed()

    async def abort(self, ids: Sequence[str]) -> None:
        self._waiting.discard(set(ids))
        for replica in self._replicas:
            here = [name for name in ids if self._place.get(name) is replica]
            if here:
                replica.send(Abort(here))
            for name in here:
                del self._place[name]
                replica.in_flight -= 1
        self._feed()

    async def completions(self) -> list[Completion]:
        done = self._take_in(await self._inbox.get())
        while not self._inbox.empty():
            done += self._take_in(self._inbox.get_nowait())
        self._feed()
        return done

    async def _start(self) -> None:
        """Start the replicas all at once: each is told how much memory it gets, so none measures what another takes."""
        loop = asyncio.get_running_loop()
        if self._teacher.mps:
            self._mps = await asyncio.to_thread(mps_for, on_one_card(self._teacher))
        shared = self._mps.environment if self._mps is not None else {}
        for number in range(self._teacher.replica_count):
            replica = _Replica(number, self._teacher, self._sampling, self._watch, shared)
            self._replicas.append(replica)
            replica.listen(loop, self._inbox)
        start, limit = loop.time(), self._teacher.start_timeout_s
        while starting := [replica.number for replica in self._replicas if not replica.capacity]:
            try:
                patience = min(PATIENCE_S, start + limit - loop.time())
                replica, message = await asyncio.wait_for(self._inbox.get(), patience)
            except TimeoutError:
                waited = loop.time() - start
                if waited >= limit:
                    raise EngineError(
                        f"replica {starting[0]} did not start in {limit:g} s (teacher.start_timeout_s); see its "
                        "output above"
                    ) from None
                note(f"replica {starting[0]} is still starting, {waited:.0f} s so far (a model may be on its way)")
                continue
            if isinstance(message, Died):
                raise _error(replica.number, message)
            if isinstance(message, Ready):
                replica.capacity, replica.described = message.capacity, message.teacher
        self.capacity = sum(replica.capacity for replica in self._replicas)

    async def _stop(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in self._replicas))
        self._replicas.clear()
        if self._mps is not None:
            await asyncio.to_thread(self._mps.stop)
            self._mps = None

    def _feed(self) -> None:
        """Send waiting prompts, in chunks of one template, to the replica with the most room.

        One that could run more at once gets its even share at once; a busy one waits until a chunk finds room.
        """
        batches: dict[int, list[Prompt]] = {}
        while self._waiting:
            replica = max(self._replicas, key=lambda one: one.room)
            size = replica.chunk
            if replica.in_flight < replica.capacity:
                size = min(size, -(-len(self._waiting) // len(self._replicas)))
            elif replica.room < size:
                break
            chunk = self._waiting.take(size)
            self._place |= dict.fromkeys((prompt.id for prompt in chunk), replica)
            replica.in_flight += len(chunk)
            batches.setdefault(replica.number, []).extend(chunk)
        for number, prompts in batches.items():
            self._replicas[number].send(Add(prompts))

    def _take_in(self, event: tuple[_Replica, Ready | Answers | Died]) -> list[Completion]:
        replica, message = event
        if isinstance(message, Died):
            raise _error(replica.number, message)
        if isinstance(message, Ready):
            return []
        for completion in message.completions:
            if self._place.pop(completion.id, None) is not None:
                replica.in_flight -= 1
        return message.completions


class _Replica:
    """A worker process and the pipe to it."""

    def __init__(
        self,
        number: int,
        teacher: Teacher,
        sampling: Sampling,
        watch: Watch | None,
        shared: Mapping[str, str] | None = None,
    ) -> None:
        """Start a worker; `shared` goes into its environment, as into the others'."""
        self.number = number
        self.capacity = 0
        self.in_flight = 0
        self.described: dict[str, str] = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, share(teacher), sampling, watch, environment(number, teacher) | dict(shared or {}))
        self._process: BaseProcess = context.Process(target=work, args=arguments, name=f"replica-{number}")
        with interrupts_held():
            self._process.start()
        theirs.close()
        self._reader: threading.Thread | None = None

    @property
    def room(self) -> int:
        """Prompts that it can take: half a batch more than it runs at once, so that it never waits for us."""
        return self.capacity + self.capacity // 2 - self.in_flight

    @property
    def chunk(self) -> int:
        """Prompts that it is sent at a time while it is busy."""
        return max(1, min(CHUNK, self.capacity // 8))

    def send(self, message: Add | Abort) -> None:
        try:
            self._pipe.send_bytes(encode(message))
        except OSError as error:
            raise EngineError(f"replica {self.number} is gone ({error.strerror or error})") from None

    def listen(
        self, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[tuple[_Replica, Ready | Answers | Died]]
    ) -> None:
        """Hand over what the worker says, from a thread of its own, until the pipe closes."""

        def read() -> None:
            while True:
                try:
                    message: Ready | Answers | Died = from_worker.decode(self._pipe.recv_bytes())
                except (EOFError, OSError):
                    message = Died("its process ended without a word; it may have been killed for memory")
                try:
                    loop.call_soon_threadsafe(inbox.put_nowait, (self, message))
                except RuntimeError:  # the loop is closed: nobody listens any more
                    return
                if isinstance(message, Died):
                    return

        self._reader = threading.Thread(target=read, name=f"replica-{self.number}-reader", daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """End the worker: closing the pipe is the signal; a worker that does not heed it is killed.

        One that is still starting does not look at the pipe, and has nothing to finish.
        """
        self._shut_pipe()
        if self.capacity:
            self._process.join(STOP_S)
        if self._process.exitcode != 0:
            self._kill()
        if self._reader is not None:
            self._reader.join()
        self._pipe.close()
        self._process.close()

    def _kill(self) -> None:
        """Kill the worker and the processes that it started: vLLM's outlive it, and would keep the card."""
        pid = self._process.pid
        self._process.kill()
        self._process.join()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _shut_pipe(self) -> None:
        """Shut the socket down rather than close it: that also wakes the thread that reads from it."""
        import socket

        with socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end is closed already
                return


def _sendable(prompt: Prompt) -> bool:
    try:
        encode(prompt)
    except UnicodeEncodeError:
        return False
    return True


def _unsendable(prompt: Prompt) -> Completion:
    error = "the prompt has no UTF-8 form: it holds half a surrogate pair"
    return Completion(id=prompt.id, text="", finish_reason="error", error=error)


def _error(number: int, message: Died) -> PotstillError:
    """Return the error that a worker ended with, as the class that it was there."""
    kind: type[PotstillError] = getattr(errors, message.kind, EngineError)
    return kind(f"replica {number}: {message.message}" if issubclass(kind, EngineError) else message.message)
